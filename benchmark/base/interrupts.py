"""Signals that end a command: Ctrl-C, SIGTERM (from schedulers) and SIGHUP (from a closed terminal).

The first one is noted and raised, so that what is finished is kept and the tables are written. The second one ends the process
at once, without a traceback.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 0.5
"""Seconds in which the same signal again counts as the first one: a launcher passes on what its whole group received."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal of `SIGNALS` arrived. Not an `Exception`, so that an attack's own handlers let it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


@contextmanager
def noted(patient: bool) -> Iterator[list[int]]:
    """Add each signal to the list within this context. Look at the list too: a library may swallow the exception.

    A signal that was ignored before, as SIGHUP is under nohup, stays ignored. Outside the main thread nothing changes.

    Args:
        patient: whether the first signal only joins the list, for work that must not break off half-way; else `Interrupted` is
            raised, too.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and (number != received[0] or time.monotonic() - first > ECHO):
            os._exit(exit_code(number))
        if received:
            return
        first = time.monotonic()
        received.append(number)
        if not patient:
            raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    changed = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    try:
        for number in changed:
            signal.signal(number, note)
        yield received
    finally:
        for number in changed:
            signal.signal(number, before[number])
