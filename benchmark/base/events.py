"""Events for the steps of a search. The engine announces each step, and a caller may register a watcher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """The state of a search after one evaluation.

    Attributes:
        evaluation: number of evaluations so far.
        loss: matching loss of this evaluation.
        backend: how its gradient was computed, see `matching.problem.Updates`.
        count: evaluations since the previous announced step. It is more than one if a worker process reports.
        share: the part of an evaluation that this step cost. It is 1 / N if one of N images was evaluated alone.
    """

    evaluation: int
    loss: float
    backend: str = ""
    count: int = 1
    share: float = 1.0


def evaluations(steps: Iterable[Step]) -> int:
    """Return the whole evaluations that announced steps cost together. Rounding errors of shares do not count."""
    return math.floor(sum(step.count * step.share for step in steps) + 1e-6)


_watchers: ContextVar[tuple[Callable[[Step], None], ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(watcher: Callable[[Step], None]) -> Iterator[None]:
    """Call `watcher` after each evaluation of every search within this context, in addition to other watchers."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def announce(step: Step) -> None:
    """Call every watcher of this context with `step`."""
    for watcher in _watchers.get():
        watcher(step)
