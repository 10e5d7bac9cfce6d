"""Paths from the user: expand `~`, and reject an invalid path with a message of one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.base.errors import UserError, shown

MAX_NAME_BYTES = 255
"""Maximum number of bytes in one part of a path, on all common file systems."""

MAX_PATH_BYTES = 4095
"""Maximum number of bytes in a whole path on Linux."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path with `~` and `~user` expanded.

    Raises:
        UserError: the path is empty, names a user that does not exist, holds a null character, or is too long for a file
            system.
    """
    text = os.fspath(text)
    if not text:
        raise UserError("a path is empty")
    if "\0" in text:
        raise UserError(f"a path holds a null character: {shown(text)}")
    try:
        path = Path(text).expanduser()
        raw = os.fsencode(path)
    except (RuntimeError, UnicodeEncodeError) as error:
        raise UserError(
            f"the path {shown(text)} holds an unknown home folder or characters that this machine cannot encode"
        ) from error
    if len(raw) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise UserError(f"the path {shown(text)} is too long for a file system")
    return path


def printable(text: str | os.PathLike[str]) -> str:
    """Return a path or label as one line of printable text. Replace other characters and invalid bytes by U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in os.fsencode(text).decode(errors="replace"))


def resolve_link(path: Path) -> Path:
    """Return the target of a link. Return any other path unchanged."""
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):  # a link to itself; the next use of the path reports the error
        return path
