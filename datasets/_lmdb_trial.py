"""Read the first images of an lmdb database in a separate process, which a damaged database may end. Not a plugin.

    python _lmdb_trial.py FOLDER COUNT

The exit status is 0 if the database can be read. Otherwise it is 1, and the reason is on stdout. The script imports no package
except lmdb, so it starts quickly.
"""

import sys
from itertools import islice
from pathlib import Path

PAGE_BYTES = 4096
"""Smallest page of memory, in bytes. Reading one byte of each page is enough to touch all pages."""


def problem(folder: str, max_images: int) -> str:
    """Return why the database cannot be read, or an empty text if it can."""
    import lmdb

    try:
        with lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False) as base:
            size = (Path(folder) / "data.mdb").stat().st_size
            end = (base.info()["last_pgno"] + 1) * base.stat()["psize"]
            if size < end:
                return f"the file is cut off: it has {size} bytes, and its last page ends at byte {end}"
            with base.begin(buffers=True) as transaction:
                for _, value in islice(transaction.cursor(), max_images):
                    bytes(value[::PAGE_BYTES])
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


if __name__ == "__main__":
    reason = problem(sys.argv[1], int(sys.argv[2]))
    print(reason)
    sys.exit(bool(reason))
