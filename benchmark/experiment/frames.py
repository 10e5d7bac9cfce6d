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

from benchmark.base.parsing import LARGEST_INTEGER
from benchmark.evaluation.judge import Sample
from benchmark.evaluation.metrics import measures
from benchmark.experiment.records import Damaged, Record, Status, writable

PICTURES = ("original", "reconstruction")

FIXED = {
    **dict.fromkeys(("victim", "image"), pyarrow.int64()),
    **dict.fromkeys(("source", "status", "reason"), pyarrow.string()),
    "success": pyarrow.bool_(),
    **dict.fromkeys(("timestep", "timestep_estimate", "timestep_error"), pyarrow.int64()),
    **dict.fromkeys(("noise_mse", "loss"), pyarrow.float64()),
    "evaluations": pyarrow.int64(),
    **dict.fromkeys(PICTURES, pyarrow.binary()),
    "shape": pyarrow.list_(pyarrow.int64()),
}
"""The columns of `samples.parquet` and their types, except for the measurements. Each of those is a column of float64."""

RANKED = "psnr"
"""The measurement that ranks attacks, which every file must have.

Other measurements may have been added to the metrics, or removed, since a file was written.
"""

CHANNELS = (1, 3)

BYTES_PER_FILE, BYTES_PER_ROW = 2**20, 2**16
"""Allowance in bytes for all content of a parquet file except the pictures, such as sources and reasons."""

SLACK = 1e-3
"""Amount by which a measurement may exceed its bounds because of rounding."""


def to_parquet(samples: Sequence[Sample]) -> bytes:
    """Return the bytes of a parquet file with one row per sample."""
    columns = {name: [_stored(getattr(sample, name)) for sample in samples] for name in FIXED if name != "shape"}
    columns["shape"] = [list(sample.original.shape) for sample in samples]
    columns |= {name: [sample.measured[name] for sample in samples] for name in measures()}
    schema = pyarrow.schema({**FIXED, **dict.fromkeys(measures(), pyarrow.float64())})
    return _written(pyarrow.Table.from_pydict(columns, schema=schema))


def with_measurement(content: bytes, name: str, values: Sequence[float | None]) -> bytes:
    """Add or replace the column of one measurement in a parquet file of samples.

    Args:
        content: the bytes of the file.
        name: name of the measurement.
        values: one value per row.

    Returns:
        The bytes of the new file. All other columns are unchanged.
    """
    with _opened(content) as file:
        table = file.read(use_threads=False)
    column = pyarrow.array(values, type=pyarrow.float64())
    place = table.schema.get_field_index(name)
    return _written(table.append_column(name, column) if place < 0 else table.set_column(place, name, column))


def most_bytes(record: Record) -> int:
    """Return an upper bound on the size in bytes of the parquet file that belongs to a record."""
    pixels: int = max(CHANNELS) * record.config["scenario"]["image_size"] ** 2
    return BYTES_PER_FILE + record.n_total * (BYTES_PER_ROW + 2 * len(PICTURES) * pixels * 4)


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
        with _opened(content) as file:
            if not _fits(file.schema_arrow):
                raise Damaged("its columns are not those of samples")
            if not file.metadata.num_rows <= record.n_total:
                raise Damaged("it has more rows than the cell has images")
            frame: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except MemoryError:  # pyarrow's own memory error is both a `MemoryError` and an `ArrowException`
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged("it is no whole parquet file") from error
    frame = frame.reindex(columns=[*FIXED, *measures()])
    _check(frame, record)
    for column in PICTURES:
        frame[column] = [_picture(raw, shape) for raw, shape in zip(frame[column], frame["shape"], strict=True)]
    return frame.drop(columns="shape")


def _opened(content: bytes) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), memory_map=False, pre_buffer=False)


def _written(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _fits(schema: pyarrow.Schema) -> bool:
    """Return whether the columns are `FIXED` and measurements. `RANKED` must be one of them, and none may occur twice."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    measured = {name: kind for name, kind in kinds.items() if name not in FIXED}
    return (
        len(kinds) == len(schema.names)
        and FIXED.items() <= kinds.items()
        and RANKED in measured
        and all(kind == pyarrow.float64() for kind in measured.values())
    )


def _stored(value: object) -> object:
    """Return a value in the form of its column. A third-party attack may report any text and any integer."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    if isinstance(value, int):
        return min(max(value, -LARGEST_INTEGER), LARGEST_INTEGER)
    return writable(value) if isinstance(value, str) else value


def _check(frame: pd.DataFrame, record: Record) -> None:
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
    if not all(_plausible(ok[name], *measure.bounds) for name, measure in measures().items()) or ok[RANKED].isna().any():
        raise Damaged("it has a measurement that cannot be")


def _plausible(values: pd.Series[float], low: float, high: float) -> bool:
    """Return whether all values that are not NaN lie within the bounds."""
    return bool((values.isna() | values.between(low - SLACK, high + SLACK)).all())


def _picture(raw: bytes, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = [int(side) for side in shape if side == side]  # a missing side is NaN
    if len(size) != 3 or min(size) < 1 or size[2] not in CHANNELS or 4 * size[0] * size[1] * size[2] != len(raw):
        raise Damaged("it has a picture of another size than its shape says")
    return np.frombuffer(raw, dtype="<f4").reshape(size)
