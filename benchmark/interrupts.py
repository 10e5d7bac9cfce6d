"""Ctrl-C, noted so that it is not lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(patient: bool) -> Iterator[list[int]]:
    """Within this context every Ctrl-C joins the list; what is raised in a destructor or a library's callback would be lost.

    Args:
        patient: whether it only joins the list, for work that must not break off half-way; else it raises as ever, too.
    """
    interrupts: list[int] = []

    def note(number: int, frame: object) -> None:
        interrupts.append(number)
        if not patient:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
