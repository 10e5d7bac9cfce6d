"""Run one cell: draw its scene, run the attack, judge the reconstruction and make the record.

Every cell becomes a row of the tables. An exception ends its cell, not the run.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmark.base.errors import first_line
from benchmark.base.events import Step, evaluations, watching
from benchmark.base.machine import out_of_memory
from benchmark.evaluation.judge import Sample, judge
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.describe import Claims, Ending, record_of, why_skipped
from benchmark.experiment.expectation import expectation
from benchmark.experiment.records import Record, Status
from benchmark.experiment.scene import Scene
from benchmark.types import Reconstruction


class CellTimeout(BaseException):
    """The time limit of a cell has passed. It is not an `Exception`, so that handlers in an attack do not catch it."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished cell: its record and its samples."""

    record: Record
    samples: Sequence[Sample]


def run_cell(cell: Cell, cache: Cache | None = None, timeout: float | None = None) -> Outcome:
    """Run one cell and return its outcome. An error inside the cell becomes part of the outcome.

    Args:
        cell: the cell.
        cache: networks and mean colours that the cells of a run share. A cell that runs alone needs none.
        timeout: seconds after which the cell is given up, None for no limit. A limit needs the main thread.
    """
    scene, claims = Scene(cell, cache or Cache()), Claims()
    status, reason, seconds, expected = Status.FAILED, "", None, None
    samples: list[Sample] = []
    steps: list[Step] = []
    _reset_peak(cell.device)
    try:
        with _time_limit(timeout):
            claims = Claims(scene.public, scene.privacy)
            if cell.missing:
                status, reason = Status.SKIPPED, why_skipped(cell)
            else:
                expected = expectation(scene)
                rebuilt, seconds = _attack(scene, steps)
                samples = _judge(scene, rebuilt)
                _check_count(rebuilt, evaluations(steps))
                status, reason = _verdict(samples)
    except CellTimeout:
        status, reason = Status.TIMEOUT, f"gave up after {timeout:g} s"
    except Exception as error:
        status = Status.OOM if out_of_memory(error) else Status.FAILED
        reason = _explain(error)
    backends = sorted({step.backend for step in steps})
    ending = Ending(status, reason, seconds, backends, _peak(cell.device), expected)
    return Outcome(record_of(scene, claims, ending), samples)


def lost(cell: Cell, status: Status, reason: str) -> Outcome:
    """Return the outcome of a cell whose process ended before the cell did."""
    scene = Scene(cell, Cache())
    try:
        claims = Claims(scene.public, scene.privacy)
    except Exception:  # a defense that fails to describe itself claims nothing
        claims = Claims()
    return Outcome(record_of(scene, claims, Ending(status, reason)), [])


def _attack(scene: Scene, steps: list[Step]) -> tuple[list[Reconstruction], float]:
    """Run the attack. Return its reconstructions and the seconds that it took, and add the steps of its searches to `steps`."""
    _ = scene.observations  # draw them before the time of the attack starts
    start = time.perf_counter()
    with watching(steps.append):
        rebuilt = scene.attack()
    return rebuilt, time.perf_counter() - start


def _judge(scene: Scene, rebuilt: Sequence[Reconstruction]) -> list[Sample]:
    redrawn = scene.public.draws_per_image is not None
    return judge(scene.victims, rebuilt, scene.cell.success_db, scene.codec.decode, scene.updates_per_round, redrawn)


def _verdict(samples: Sequence[Sample]) -> tuple[Status, str]:
    lost = [sample for sample in samples if sample.status != "ok"]
    if not lost:
        return Status.OK, "; ".join(dict.fromkeys(sample.reason for sample in samples if sample.reason))
    reason = f"{len(lost)} of {len(samples)} images diverged: {lost[0].reason}"
    return (Status.DIVERGED if len(lost) == len(samples) else Status.OK), reason


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `CellTimeout` in the running code after `seconds`."""
    if seconds is None:
        yield
        return

    def over(signum: int, frame: object) -> None:
        raise CellTimeout

    before = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_count(rebuilt: Sequence[Reconstruction], counted: int) -> None:
    """Check that an attack reports at least as many evaluations as the engine counted. It may spend others of its own."""
    reported = sum(reconstruction.evaluations for reconstruction in rebuilt)
    if reported < counted:
        raise RuntimeError(f"the attack reports {reported} evaluations, but {counted} were counted")


def _explain(error: Exception) -> str:
    """Return type, message and place of an error on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> float | None:
    """Return the peak MiB of tensors on a GPU, None on a CPU, where the allocator keeps memory that earlier cells freed."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.startswith("cuda") else None
