"""Runs cells in several worker processes. Only the parent process writes to the run directory.

A worker plans the job by itself and receives the identities of cells to run. It refuses an identity that it does not know:
code, data or settings then differ from those of the parent. Workers are spawned, and they end when the parent does.
"""

from __future__ import annotations

import math
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
from multiprocessing import resource_tracker
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

HINT = "use fewer workers; a script that starts workers needs `if __name__ == '__main__':`"
"""What helps if workers do not start."""

MAX_WAIT = 600.0
"""Seconds after which the parent looks again, even if no worker has sent anything. `poll` refuses long limits."""

JOIN_SECONDS = 5.0
"""Seconds in which a process must end after it has closed its connection."""

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

        A worker that ends costs the cell that it has begun, and another worker takes its place. If that one cannot start, the
        others go on without it.

        Raises:
            UserError: no worker can start, or one computes another identity for a cell.
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
                        count = count if worker.ready else count - 1
                        if cell and not outcome:
                            waiting.appendleft(cell)
                        if not count:
                            raise UserError(f"no worker process can start: the last one {worker.end()}; {HINT}")
                    if cell and outcome:
                        worker.cell = None
                        yield cell, outcome
        finally:
            for worker in crew:
                worker.process.kill()
            for worker in crew:
                worker.stop()

    def _hire(self, crew: list[_Worker], count: int) -> _Worker | None:
        """Add a worker to the crew and return it; None if there are `count` already.

        Signals wait until the worker is in the crew. It inherits this, so that Ctrl-C reaches it only once it ignores it.
        """
        if len(crew) >= count:
            return None
        resource_tracker.ensure_running()  # it would let the signals through where it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            crew.append(_Worker(self.job, count, self.timeout))
        except OSError as error:
            if crew:  # the others go on, and one more is tried when the next cell ends
                return None
            raise UserError(f"cannot start a worker process: {error.strerror or error}; {HINT}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return crew[-1]


def _idle(crew: Sequence[_Worker]) -> _Worker | None:
    """Return a worker without a cell, None if there is none."""
    return next((worker for worker in crew if worker.cell is None), None)


def _next(crew: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers that have sent something, have ended, or are past their deadline. Wait until there is one."""
    deadlines = [worker.deadline for worker in crew if worker.deadline is not None]
    patience = max(0.0, min([*(deadline - time.monotonic() for deadline in deadlines), MAX_WAIT]))
    ready = set(wait([channel for worker in crew for channel in worker.channels], patience))
    now = time.monotonic()
    return [worker for worker in crew if ready & set(worker.channels) or (worker.deadline or math.inf) <= now]


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
        self.ready = self.begun = False
        self.alive = True
        self.process = context.Process(target=_work, args=(theirs, job, workers, timeout))
        self.process.start()
        theirs.close()

    def give(self, cell: Cell) -> None:
        """Hand over a cell to run."""
        self.cell, self.begun = cell, False
        with suppress(OSError):  # the worker has ended: `receive` finds out
            _send(self.connection, cell.identity)

    @property
    def channels(self) -> tuple[Connection, int]:
        """What becomes readable if the worker sends something or ends. A child of the worker may keep the first one open."""
        return self.connection, self.process.sentinel

    def receive(self, display: Display) -> Outcome | None:
        """Handle one message, the end of the process or its deadline. Return the outcome of the cell if it has one now.

        Raises:
            UserError: the worker refuses its cell.
        """
        try:
            if not self.connection.poll():
                return self._ended() if self.process.exitcode is not None else self._late()
            message = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._ended()
        match message:
            case Ready():
                self.ready = True
            case Begun() if self.cell:
                self.begun = True
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

    def _late(self) -> Outcome | None:
        """Kill a worker that has not given up its cell in time."""
        if self.deadline is None or self.deadline > time.monotonic():
            return None
        self.stop()
        reason = f"gave up after {self.timeout:g} s; its worker process did not answer and was killed"
        return lost(self.cell, Status.TIMEOUT, reason) if self.cell else None

    def _ended(self) -> Outcome | None:
        """Account for a worker that has ended. Return the outcome of the cell that it had begun."""
        self.process.join(JOIN_SECONDS)
        self.stop()
        if not (self.cell and self.begun):
            return None
        if self.process.exitcode == -signal.SIGKILL:
            return lost(self.cell, Status.OOM, f"its worker process {self.end()}, as the system does where memory runs out")
        return lost(self.cell, Status.FAILED, f"its worker process {self.end()}")

    def end(self) -> str:
        """Return how the process ended, in words."""
        code = self.process.exitcode or 0
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with exit code {code}"

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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
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
        while identity := _receive(connection):
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


def _receive(connection: Connection) -> str | None:
    """Wait for the identity of a cell and return it; None if the parent has closed the connection."""
    try:
        return str(pickle.loads(connection.recv_bytes()))
    except EOFError:
        return None


def _send(connection: Connection, message: Any) -> None:
    """Send a message. The alarm of a time limit cannot cut a `Step` in two: such short messages go out in one write."""
    connection.send_bytes(pickle.dumps(message))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
