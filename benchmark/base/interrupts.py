"""Handling of signals that end a command: Ctrl-C, SIGTERM (from schedulers) and SIGHUP (from a closed terminal).

The first signal is recorded and raised as an exception. The command can then keep its finished results and write the tables.
The second signal ends the process at once, without a traceback.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_SECONDS = 0.5
"""Seconds in which a repeated signal counts as the first one. A launcher may pass on a signal that its group received too."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal of `SIGNALS` arrived. This is not an `Exception`, so that `except Exception` in an attack does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number


@contextmanager
def record_interrupts(patient: bool) -> Iterator[list[int]]:
    """Record the first signal within this context in the list that is yielded.

    A caller must check the list too, because a library may catch the exception. A signal that was ignored before stays
    ignored, e.g. SIGHUP under nohup. Outside the main thread this context changes nothing.

    Args:
        patient: if True, the first signal is only recorded, for work that must not stop half-way. Otherwise `Interrupted` is
            raised as well.

    Yields:
        The list of received signals: empty, or the number of the first signal.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and (number != received[0] or time.monotonic() - first > REPEAT_SECONDS):
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
