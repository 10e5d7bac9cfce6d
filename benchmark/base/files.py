"""Write files safely: an interruption, a link or another program's file does no damage.

A file is first written under a new temporary name and then renamed to its final name. A rename replaces a link itself, not
its target. Therefore nothing is ever written through a link.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import shutil
from pathlib import Path

TEMP_PREFIX = ".writing-"
"""Prefix of the temporary name of a file or directory that is not complete yet."""


def write_new(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk. Nothing with this name may exist yet, not even a link."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Write a temporary file and rename it to `path`. At any moment, `path` is either the old file or the new one."""
    aside = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(8)}")
    try:
        write_new(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content or a directory's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a directory with its content, a file, or a link without its target.

    Parts of a directory that cannot be removed stay.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def real_directory(path: Path) -> bool:
    """Return whether the path is a directory and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def digest(content: bytes) -> str:
    """Return the checksum of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str | None:
    """Return the checksum of a regular file; None for a link, a directory or an unreadable file."""
    try:
        return digest(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def set_aside(path: Path) -> Path:
    """Rename the file or directory to the first free name of `NAME~`, `NAME~2`, ..., and return that path."""
    endings = itertools.chain(["~"], (f"~{number}" for number in itertools.count(2)))
    free = next(name for ending in endings if not os.path.lexists(name := path.with_name(path.name + ending)))
    path.rename(free)
    return free
