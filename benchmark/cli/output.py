"""Protection of standard output and error against a limited encoding and against a closed or full output."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Make stdout and stderr safe to write to.

    Characters that the encoding of the output lacks are replaced. A closed stream is replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # stays open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard_stdout() -> None:
    """Discard all output that is not written yet, so that it does not fail again when the process ends."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # stdout is not a file
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    finally:
        os.close(null_device)
