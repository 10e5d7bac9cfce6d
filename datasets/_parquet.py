"""The images of Parquet files as on the Hugging Face hub: a column of structs that hold the encoded `bytes`. Not a plugin."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.image_files import read_image, reason
from benchmark.base.paths import printable
from benchmark.datasets._parts import Part

MAX_ROWS = 1_000_000
"""Largest number of images of a data set. A small file can claim any number of rows."""

BINARY_TYPES = frozenset({"binary", "large_binary"})


@dataclass(frozen=True, eq=False)
class _Group:
    """A row group of a Parquet file.

    Attributes:
        file: the file that holds it.
        table: the opened file.
        number: number of the group in the file, from 0.
        first: number of its first row in the file, from 0.
        rows: number of its rows.
    """

    file: Path
    table: Any
    number: int
    first: int
    rows: int


def parquet_part(dataset: str, files: Sequence[Path], label: str) -> Part:
    """Return the images of Parquet files.

    Args:
        dataset: name of the data set, for messages.
        files: files, in the order of their images.
        label: first part of the name of every source.

    Raises:
        UserError: a file cannot be read, or lacks the column of images that the first file has.
    """
    groups = [group for file in files for group in _groups(dataset, file)]
    column = _image_column(dataset, groups)
    ends = list(accumulate(group.rows for group in groups))
    if ends and ends[-1] > MAX_ROWS:
        raise UserError(f"data set '{dataset}': {printable(files[0])} and others have {ends[-1]} rows, more than {MAX_ROWS}")

    @lru_cache(maxsize=2)
    def read(number: int) -> Any:
        # Without threads: under a memory limit, pyarrow's pool waits forever for a thread that it cannot start.
        return groups[number].table.read_row_group(groups[number].number, columns=[column], use_threads=False).column(column)

    def load(index: int) -> Image.Image:
        number = bisect_right(ends, index)
        group = groups[number]
        offset = index - ends[number] + group.rows
        name = f"row {group.first + offset} of {printable(group.file)}"
        try:
            row = read(number)[offset].as_py()
        except MemoryError:
            raise
        except Exception as error:  # exception classes of pyarrow and of Python
            raise UserError(f"data set '{dataset}': cannot read {name}: {reason(error)}") from error
        if not row or not row["bytes"]:
            raise UserError(f"data set '{dataset}': cannot read {name}: it holds no image")
        return read_image(row["bytes"], f"in {name}")

    return Part(dataset, [f"{label}-{i}" for i in range(ends[-1] if ends else 0)], load)


def _groups(dataset: str, file: Path) -> Iterator[_Group]:
    """Yield the row groups of a file. A file without rows has one empty group."""
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file, pre_buffer=False, memory_map=False)
        rows = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)] or [0]
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"data set '{dataset}': cannot read {printable(file)}: {reason(error)}") from error
    for number, (end, count) in enumerate(zip(accumulate(rows), rows, strict=True)):
        yield _Group(file, table, number, end - count, count)


def _image_column(dataset: str, groups: Sequence[_Group]) -> str:
    """Return the name of the first column of structs with a field `bytes`. Refuse files that lack it."""
    schemas = {group.file: group.table.schema_arrow for group in groups}
    column = None
    for file, schema in schemas.items():
        kinds = {field.name: _bytes_type(field.type) for field in schema}
        column = column or next((name for name, kind in kinds.items() if kind), None)
        kind = kinds.get(column)
        if not kind:
            wanted = f"column of images '{column}', which the files before it have" if column else "column of images"
            raise UserError(f"data set '{dataset}': {printable(file)} has no {wanted}")
        if kind not in BINARY_TYPES:
            raise UserError(
                f"data set '{dataset}': {printable(file)} holds {kind} in its column '{column}', not the bytes of images"
            )
    assert column is not None
    return str(column)


def _bytes_type(kind: Any) -> str | None:
    """Return the type of the field `bytes` of a struct, or None if there is no such field."""
    from pyarrow.types import is_struct

    return next((str(part.type) for part in kind if part.name == "bytes"), None) if is_struct(kind) else None
