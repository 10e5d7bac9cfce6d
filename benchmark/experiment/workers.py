"""Runs cells in several worker processes. Only the parent process writes to the run directory.

A worker plans the job by itself and receives the identities of cells to run. It refuses an identity that it does not know:
code, data or settings then differ from those of the parent. Workers are spawned, and they end when the parent does.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmark.base.errors import UserError
from benchmark.base.events import Step, watching
from benchmark.base.interrupts import SIGNALS
from benchmark.base.machine import configure_torch, share_machine
from benchmark.evaluation.metrics import lpips_missing
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.display import Display
from benchmark.experiment.job import Job
from benchmark.experiment.records import Status
from benchmark.experiment.runner import Outcome, lost, run_cell
from benchmark.matching.plans import shared_plans

MAX_WORKERS = 256
"""The most worker processes of a run."""

GRACE = 30.0
"""Seconds after a cell's time limit in which a worker must give it up by itself. Then it is killed."""

STEP_INTERVAL = 0.2
"""Seconds between two reports of a worker on its search."""


@dataclass(frozen=True)
class Ready:
    """A worker has planned the job."""


@dataclass(frozen=True)
class Begun:
    """A worker has started its cell."""


@dataclass(frozen=True)
class Ended:
    """A worker has finished its cell."""

    outcome: Outcome


@dataclass(frozen=True)
class Refused:
    """A worker cannot run what it was asked for."""

    reason: str


@dataclass(frozen=True)
class Workers:
    """Runs cells in several processes.

    Attributes:
        job: what each worker plans.
        count: the number of workers; there are never more than cells.
        timeout: seconds after which a cell is given up, None for no limit.
    """

    job: Job
    count: int
    timeout: float | None = None

    def outcomes(self, cells: Sequence[Cell], display: Display) -> Generator[tuple[Cell, Outcome]]:
        """See `Executor.outcomes`.

        Raises:
            UserError: a worker ends before it is ready, or computes another identity for a cell.
        """
        waiting = deque(cells)
        count = min(self.count, len(cells))
        crew: list[_Worker] = []
        try:
            while waiting or any(worker.cell for worker in crew):
                while waiting and (worker := _idle(crew) or self._hire(crew, count)):
                    worker.give(waiting.popleft())
                for worker in _next(crew):
                    outcome, cell = worker.receive(display), worker.cell
                    if not worker.alive:
                        crew.remove(worker)
                    if cell and outcome:
                        worker.cell = None
                        yield cell, outcome
        finally:
            for worker in crew:
                worker.stop()

    def _hire(self, crew: list[_Worker], count: int) -> _Worker | None:
        """Add a worker to the crew and return it; None where there are `count` already."""
        if len(crew) == count:
            return None
        crew.append(_Worker(self.job, count, self.timeout))
        return crew[-1]


def _idle(crew: Sequence[_Worker]) -> _Worker | None:
    """Return a worker without a cell, None where there is none."""
    return next((worker for worker in crew if worker.cell is None), None)


def _next(crew: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers that have sent something, have ended, or are past their deadline. Wait until there is one."""
    deadlines = [worker.deadline for worker in crew if worker.deadline is not None]
    patience = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
    speaking = wait([worker.connection for worker in crew], patience)
    now = time.monotonic()
    return [
        worker for worker in crew if worker.connection in speaking or (worker.deadline is not None and worker.deadline <= now)
    ]


class _Worker:
    """The parent's end of a worker process.

    Attributes:
        cell: the cell that was given to it, None where it is idle.
        deadline: when it is killed, in seconds of the monotonic clock; None while it runs no cell with a time limit.
        alive: whether it can still be given a cell.
    """

    def __init__(self, job: Job, workers: int, timeout: float | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.timeout = timeout
        self.cell: Cell | None = None
        self.deadline: float | None = None
        self.ready = False
        self.alive = True
        self.process = context.Process(target=_work, args=(theirs, job, workers, timeout))
        self.process.start()
        theirs.close()

    def give(self, cell: Cell) -> None:
        """Hand over a cell to run."""
        self.cell = cell
        with suppress(OSError):  # the worker has ended: `receive` finds out
            _send(self.connection, cell.identity)

    def receive(self, display: Display) -> Outcome | None:
        """Handle one message, or the end of the process. Return the outcome of the cell where it has one now.

        Raises:
            UserError: the worker refuses its cell, or ended before it was ready.
        """
        if not self.connection.poll():
            return self._killed()
        try:
            message = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._ended()
        match message:
            case Ready():
                self.ready = True
            case Begun() if self.cell:
                self.deadline = None if self.timeout is None else time.monotonic() + self.timeout + GRACE
                display.begin(self.cell)
            case Step() if self.cell:
                display.step(self.cell, message)
            case Refused():
                raise UserError(message.reason)
            case Ended():
                self.deadline = None
                return message.outcome
        return None

    def _killed(self) -> Outcome | None:
        """Kill a worker that has not given up its cell in time."""
        self.stop()
        reason = f"gave up after {self.timeout:g} s; its worker process did not answer and was killed"
        return lost(self.cell, Status.TIMEOUT, reason) if self.cell else None

    def _ended(self) -> Outcome | None:
        """Account for a worker that has ended by itself or was ended by the system."""
        self.stop()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if not self.ready:
            raise UserError(f"a worker process {how} before it was ready; try fewer --workers")
        if self.cell is None:
            return None
        if code == -signal.SIGKILL:
            return lost(self.cell, Status.OOM, f"its worker process {how}, as the system does where memory runs out")
        return lost(self.cell, Status.FAILED, f"its worker process {how}")

    def stop(self) -> None:
        """End the process at once."""
        self.alive = False
        self.deadline = None
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, job: Job, workers: int, timeout: float | None) -> None:
    """Run cells in a worker process until the parent ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides: Ctrl-C reaches the whole process group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_torch()
    share_machine(workers)
    lpips_missing()
    try:
        cells = {cell.identity: cell for cell in job.cells()}
    except UserError as error:
        _send(connection, Refused(str(error)))
        return
    _send(connection, Ready())
    cache = Cache()
    with shared_plans():
        while True:
            identity = pickle.loads(connection.recv_bytes())
            if identity not in cells:
                _send(connection, Refused("code, data or settings have changed since the run began; start it again"))
                return
            _send(connection, Begun())
            with watching(_Reporter(connection)):
                outcome = run_cell(cells[identity], cache, timeout)
            _send(connection, Ended(outcome))


@dataclass
class _Reporter:
    """Sends the steps of a search to the parent, the latest at most every `STEP_INTERVAL` seconds."""

    connection: Connection
    sent: float = field(default_factory=time.monotonic)
    unsent: int = 0

    def __call__(self, step: Step) -> None:
        self.unsent += step.count
        if (now := time.monotonic()) - self.sent >= STEP_INTERVAL:
            _send(self.connection, Step(step.evaluation, step.loss, step.backend, self.unsent))
            self.sent, self.unsent = now, 0


def _send(connection: Connection, message: Any) -> None:
    """Send a message whole: the alarm of a time limit waits until it is sent."""
    content = pickle.dumps(message)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        connection.send_bytes(content)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
