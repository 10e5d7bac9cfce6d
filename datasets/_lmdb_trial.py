"""Read the first images of an lmdb base, in a process of its own that a damaged base may end. Not a plugin.

    python _lmdb_trial.py FOLDER COUNT

The exit status is 0 where the base can be read, else 1 with the reason on stdout. Only lmdb is imported, so it starts at once.
"""

import sys
from itertools import islice
from pathlib import Path

SMALLEST_PAGE = 4096
"""Bytes of memory that are read at once: one byte of each is enough to reach them all."""


def problem(folder: str, most: int) -> str:
    """Return why the base cannot be read, empty where it can."""
    import lmdb

    try:
        with lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False) as base:
            size = (Path(folder) / "data.mdb").stat().st_size
            end = (base.info()["last_pgno"] + 1) * base.stat()["psize"]
            if size < end:
                return f"the file is cut off: it has {size} bytes, and its last page ends at byte {end}"
            with base.begin(buffers=True) as transaction:
                for _, value in islice(transaction.cursor(), most):
                    bytes(value[::SMALLEST_PAGE])
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


if __name__ == "__main__":
    found = problem(sys.argv[1], int(sys.argv[2]))
    print(found)
    sys.exit(bool(found))
