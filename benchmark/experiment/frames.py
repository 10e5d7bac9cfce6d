"""Conversion between a cell's samples and the bytes of a parquet file.

No thread is started in either direction, since starting one may fail when memory is scarce.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from benchmark.base.parsing import MAX_INTEGER
from benchmark.evaluation.judge import Sample
from benchmark.evaluation.metrics import measures
from benchmark.experiment.records import Damaged, Record, Status, writable

PICTURE_COLUMNS = ("original", "reconstruction")

FIXED_COLUMNS = {
    **dict.fromkeys(("victim", "image"), pyarrow.int64()),
    **dict.fromkeys(("source", "status", "reason"), pyarrow.string()),
    "success": pyarrow.bool_(),
    **dict.fromkeys(("timestep", "timestep_estimate", "timestep_error"), pyarrow.int64()),
    **dict.fromkeys(("noise_mse", "loss"), pyarrow.float64()),
    "evaluations": pyarrow.int64(),
    **dict.fromkeys(PICTURE_COLUMNS, pyarrow.binary()),
    "shape": pyarrow.list_(pyarrow.int64()),
}
"""The columns of `samples.parquet` and their types, except for the measurements. Each of those is a column of float64."""

LATER_COLUMNS = dict.fromkeys(("predicted_psnr", "accepted"), pyarrow.float64())
"""Columns that files of version 0.2.0 and of earlier versions lack."""

RANKING_MEASUREMENT = "psnr"
"""The measurement that ranks attacks, which every file must have.

Other measurements may have been added to the metrics, or removed, since a file was written.
"""

CHANNEL_COUNTS = (1, 3)

MAX_BYTES_PER_FILE, MAX_BYTES_PER_ROW = 2**20, 2**16
"""Allowance in bytes for all content of a parquet file except the pictures, such as sources and reasons."""

ROUNDING_TOLERANCE = 1e-3
"""Amount by which a measurement may exceed its bounds because of rounding."""


def to_parquet(samples: Sequence[Sample]) -> bytes:
    """Return the bytes of a parquet file with one row per sample."""
    names = [name for name in (*FIXED_COLUMNS, *LATER_COLUMNS) if name != "shape"]
    columns = {name: [_column_value(getattr(sample, name)) for sample in samples] for name in names}
    columns["shape"] = [list(sample.original.shape) for sample in samples]
    columns |= {name: [sample.measured[name] for sample in samples] for name in measures()}
    schema = pyarrow.schema({**FIXED_COLUMNS, **LATER_COLUMNS, **dict.fromkeys(measures(), pyarrow.float64())})
    return _parquet_bytes(pyarrow.Table.from_pydict(columns, schema=schema))


def with_measurement(content: bytes, name: str, values: Sequence[float | None]) -> bytes:
    """Add or replace the column of one measurement in a parquet file of samples.

    Args:
        content: the bytes of the file.
        name: name of the measurement.
        values: one value per row.

    Returns:
        The bytes of the new file. All other columns are unchanged.
    """
    with _open_parquet(content) as file:
        table = file.read(use_threads=False)
    column = pyarrow.array(values, type=pyarrow.float64())
    index = table.schema.get_field_index(name)
    return _parquet_bytes(table.append_column(name, column) if index < 0 else table.set_column(index, name, column))


def max_bytes(record: Record) -> int:
    """Return an upper bound on the size in bytes of the parquet file that belongs to a record."""
    pixels: int = max(CHANNEL_COUNTS) * record.config["scenario"]["image_size"] ** 2
    return MAX_BYTES_PER_FILE + record.n_total * (MAX_BYTES_PER_ROW + 2 * len(PICTURE_COLUMNS) * pixels * 4)


def to_frame(content: bytes, record: Record) -> pd.DataFrame:
    """Return the rows of a parquet file. `original` and `reconstruction` are (H, W, C) float32 arrays.

    A measurement that the file lacks is NaN. A measurement that is no longer a metric is left out.

    Args:
        content: the bytes of the file.
        record: the record of the same cell.

    Raises:
        Damaged: the file is no parquet file, or `to_parquet` would not write such content for this record.
    """
    try:
        with _open_parquet(content) as file:
            if not _has_expected_columns(file.schema_arrow):
                raise Damaged("its columns are not the columns of samples")
            if not file.metadata.num_rows <= record.n_total:
                raise Damaged("it has more rows than the cell has images")
            frame: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except MemoryError:  # pyarrow's own memory error is both a `MemoryError` and an `ArrowException`
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged("it is not a complete parquet file") from error
    frame = frame.reindex(columns=[*FIXED_COLUMNS, *LATER_COLUMNS, *measures()])
    _check_rows(frame, record)
    for column in PICTURE_COLUMNS:
        frame[column] = [_picture(raw, shape) for raw, shape in zip(frame[column], frame["shape"], strict=True)]
    return frame.drop(columns="shape")


def _open_parquet(content: bytes) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), memory_map=False, pre_buffer=False)


def _parquet_bytes(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _has_expected_columns(schema: pyarrow.Schema) -> bool:
    """Return whether the columns are `FIXED_COLUMNS` and measurements, with `RANKING_MEASUREMENT` and without repeats."""
    column_types = dict(zip(schema.names, schema.types, strict=True))
    measured = {name: kind for name, kind in column_types.items() if name not in FIXED_COLUMNS}
    return (
        len(column_types) == len(schema.names)
        and FIXED_COLUMNS.items() <= column_types.items()
        and RANKING_MEASUREMENT in measured
        and all(kind == pyarrow.float64() for kind in measured.values())
    )


def _column_value(value: object) -> object:
    """Return a value in the form of its column. A third-party attack may report any text and any integer."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    if isinstance(value, int):
        return min(max(value, -MAX_INTEGER), MAX_INTEGER)
    return writable(value) if isinstance(value, str) else value


def _check_rows(frame: pd.DataFrame, record: Record) -> None:
    """Check that the judge can have written these rows, so that tables and figures can use them.

    Raises:
        Damaged: a row is not valid, or there is no row with an image although the cell is `ok`.
    """
    ok = frame[frame.status == "ok"]
    required = frame.drop(columns=["timestep_estimate", "timestep_error", *frame.select_dtypes("float").columns])
    if record.status is Status.OK and ok.empty:
        raise Damaged("it has no image")
    if required.isna().any(axis=None) or not frame.status.isin(["ok", "diverged"]).all():
        raise Damaged("it lacks values")
    if frame.duplicated(["victim", "image"]).any():
        raise Damaged("it has an image twice")
    possible = all(_within_bounds(ok[name], *measure.bounds) for name, measure in measures().items())
    if not possible or ok[RANKING_MEASUREMENT].isna().any():
        raise Damaged("it has an impossible measurement")


def _within_bounds(values: pd.Series[float], low: float, high: float) -> bool:
    """Return whether all values that are not NaN lie within the bounds."""
    return bool((values.isna() | values.between(low - ROUNDING_TOLERANCE, high + ROUNDING_TOLERANCE)).all())


def _picture(raw: bytes, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = [int(side) for side in shape if side == side]  # a missing side is NaN
    if len(size) != 3 or min(size) < 1 or size[2] not in CHANNEL_COUNTS or 4 * size[0] * size[1] * size[2] != len(raw):
        raise Damaged("it has a picture whose size differs from its shape")
    return np.frombuffer(raw, dtype="<f4").reshape(size)
