"""Writing files so that a kill, a link or somebody else's file does no harm.

A file is written aside under a name that nobody has, and renamed into place. A rename replaces a link itself and leaves its
target alone, so nothing is ever written through a link.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import shutil
from pathlib import Path

ASIDE = ".writing-"
"""How the name of a file or directory begins that is not complete yet."""


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, also not as a link, and wait until the disk has it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place: at every moment it is the old one or the new one."""
    aside = path.with_name(f"{ASIDE}{secrets.token_hex(8)}")
    try:
        write_new(aside, content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content or a directory's names."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a directory with its content, a file, or a link without its target; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def real_directory(path: Path) -> bool:
    """Return whether a directory is there itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def digest(content: bytes) -> str:
    """Return the checksum by which a file is known again."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str | None:
    """Return the checksum of a regular file, None for a link, a directory or what cannot be read."""
    try:
        return digest(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def set_aside(path: Path) -> Path:
    """Rename whatever has this name to the first free one of `NAME~`, `NAME~2`, ..., and return it."""
    endings = itertools.chain(["~"], (f"~{number}" for number in itertools.count(2)))
    free = next(name for ending in endings if not os.path.lexists(name := path.with_name(path.name + ending)))
    path.rename(free)
    return free
