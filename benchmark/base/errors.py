"""Messages for the user: errors and remarks of one sentence."""

import contextlib
import difflib
import sys
from collections.abc import Iterable

MAX_VALUE_LENGTH = 80
"""Maximum number of characters of a user's value in a message."""

MAX_REASON_LENGTH = 300
"""Maximum number of characters of another library's error in a message."""


class UserError(Exception):
    """A mistake of the user. The command line prints it as one sentence, without a traceback, and exits with code 2."""


def say(text: str) -> None:
    """Print one line on stderr, without control characters. Ignore the error if stderr is closed."""
    with contextlib.suppress(OSError, ValueError):
        print("".join(c if c.isprintable() else " " for c in text), file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """Print a remark for the user, which needs no action, as one line on stderr."""
    say(f"note: {text}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return _shortened((str(error).strip() or type(error).__name__).splitlines()[0], MAX_REASON_LENGTH)


def whole_message(error: BaseException) -> str:
    """Return an error's message on one line, or the name of its type if the message is empty."""
    return _shortened(" ".join(str(error).split()) or type(error).__name__, MAX_REASON_LENGTH)


def shown(value: object) -> str:
    """Return a user's value in the form for a message: its `repr`, cut to `MAX_VALUE_LENGTH` characters.

    >>> shown("x" * 1000)[-4:]
    'x...'
    """
    try:
        return _shortened(repr(value), MAX_VALUE_LENGTH)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists that are nested too deeply
        return f"a {type(value).__name__} that is too large to show"


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the most similar known name.

    >>> str(unknown("attack", "dgl", ["dlg", "constant_image"]))
    "unknown attack 'dgl'; did you mean 'dlg'?"
    """
    choices = sorted(known)
    name = _shortened(name, MAX_VALUE_LENGTH)
    similar = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f"did you mean '{similar[0]}'?" if similar else f"known are: {', '.join(choices) or 'none'}"
    return UserError(f"unknown {what} {shown(name)}; {hint}")


def _shortened(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[:max_length]}..."
