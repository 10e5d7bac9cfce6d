"""What the user got wrong, told in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's. The command line prints it as one sentence and exits with 2, without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest name that does.

    >>> str(unknown("attack", "dgl", ["dlg", "constant_image"]))
    "unknown attack 'dgl'; did you mean 'dlg'?"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(choices) or 'none'}"
    return UserError(f"unknown {what} '{name}'; {hint}")
