"""The steps of a search as events: the engine announces each one, and whoever runs it may watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """The state of a search after one evaluation, for whoever watches.

    Attributes:
        evaluation: the count so far.
        loss: the cost just seen.
        backend: how its gradient was made, see `matching.problem.Updates`.
        count: evaluations since the step that was announced before; more than one where a worker process reports.
    """

    evaluation: int
    loss: float
    backend: str = ""
    count: int = 1


_watchers: ContextVar[tuple[Callable[[Step], None], ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(watcher: Callable[[Step], None]) -> Iterator[None]:
    """Within this context, `watcher` too is called after each evaluation of every search."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def announce(step: Step) -> None:
    """Call every watcher of this context with the step."""
    for watcher in _watchers.get():
        watcher(step)
