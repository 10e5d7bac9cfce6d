"""The images of an lmdb database. Not a plugin.

lmdb maps the file of a database into memory and trusts its content, so a damaged file can end the process. Therefore a child
process reads the database first (`_lmdb_trial`). A database that the child cannot read is refused.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.image_files import read_image, reason
from benchmark.base.paths import printable
from benchmark.datasets._parts import Part, last_change

TRIAL = Path(__file__).with_name("_lmdb_trial.py")
MAX_TRIAL_SECONDS = 600
"""Time limit of the child process in seconds. Without it, a database whose pages form a cycle could be read forever."""


def data_file(folder: Path) -> Path:
    """Return the file that holds the data of a database."""
    return folder / "data.mdb"


def lmdb_part(dataset: str, folder: Path, max_images: int) -> Part:
    """Return the first images of a database, in the order of its keys.

    Args:
        dataset: name of the data set, for messages.
        folder: folder of the database.
        max_images: largest number of images to return.

    Raises:
        UserError: the package lmdb is missing, or the database is damaged.
    """
    folder = folder.resolve()  # lmdb may open a folder only once in a process, so all paths to it must be the same
    try:
        import lmdb  # noqa: F401
    except ImportError:
        raise UserError(f"data set '{dataset}' needs the package lmdb: python -m pip install lmdb") from None
    file = data_file(folder)
    try:
        _check_in_child(folder, max_images, last_change(file))
        keys = _keys(folder, max_images, last_change(file))
    except _Unreadable as error:
        raise UserError(f"data set '{dataset}': cannot read {printable(file)}: {error}") from error

    def load(index: int) -> Image.Image:
        name = f"{keys[index].decode(errors='replace')} in {printable(file)}"
        try:
            value = _value(folder, keys[index])
        except _Unreadable as error:
            raise UserError(f"data set '{dataset}': cannot read {name}: {error}") from error
        return read_image(value, name)

    return Part(dataset, [key.decode(errors="replace") for key in keys], load)


class _Unreadable(Exception):
    """The database cannot be read. The message is the reason."""


@cache
def _check_in_child(folder: Path, max_images: int, changed: int) -> None:
    """Read the database in another process. `changed`, the time of its last change, is there for the cache alone.

    Raises:
        _Unreadable: that process failed.
    """
    command = [sys.executable, "-P", str(TRIAL), str(folder), str(max_images)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MAX_TRIAL_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise _Unreadable(
            f"it takes more than {MAX_TRIAL_SECONDS} seconds: the file is damaged, or the disk is too slow"
        ) from error
    except OSError as error:
        raise _Unreadable(f"no process can be started to check it ({reason(error)})") from error
    if done.returncode < 0:
        raise _Unreadable(
            f"the file is damaged, and the process that reads it ends with {signal.Signals(-done.returncode).name}"
        )
    if done.returncode:
        output = (done.stdout or done.stderr).decode(errors="replace").strip().splitlines()
        raise _Unreadable(output[-1] if output else "the process that reads it fails")


@cache
def _keys(folder: Path, max_images: int, changed: int) -> tuple[bytes, ...]:
    try:
        with _opened(folder).begin() as transaction:
            return tuple(islice(transaction.cursor().iternext(values=False), max_images))
    except MemoryError:
        raise
    except Exception as error:
        raise _Unreadable(reason(error)) from error


def _value(folder: Path, key: bytes) -> bytes:
    try:
        with _opened(folder).begin() as transaction:
            value: bytes | None = transaction.get(key)
    except MemoryError:
        raise
    except Exception as error:
        raise _Unreadable(reason(error)) from error
    if value is None:
        raise _Unreadable("the key is gone")
    return value


@cache
def _opened(folder: Path) -> Any:
    import lmdb

    return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
