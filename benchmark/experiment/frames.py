"""A cell's samples as the bytes of a parquet file, and back. Neither way starts a thread, which scarce memory may refuse."""

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
"""The columns of `samples.parquet` beside the measurements, each of which is a column of float64."""

RANKED = "psnr"
"""The measurement that every file has: attacks are ranked by it. Others may be new, or gone, since a file was written."""

CHANNELS = (1, 3)

BYTES_PER_FILE, BYTES_PER_ROW = 2**20, 2**16
"""Room for what a parquet file holds beside the pictures, names of sources and reasons among it."""

SLACK = 1e-3
"""By how much rounding may carry a measurement over its bound."""


def to_parquet(samples: Sequence[Sample]) -> bytes:
    """Return the samples as a parquet file, a row per image."""
    columns = {name: [_stored(getattr(sample, name)) for sample in samples] for name in FIXED if name != "shape"}
    columns["shape"] = [list(sample.original.shape) for sample in samples]
    columns |= {name: [sample.measured[name] for sample in samples] for name in measures()}
    schema = pyarrow.schema({**FIXED, **dict.fromkeys(measures(), pyarrow.float64())})
    return _written(pyarrow.Table.from_pydict(columns, schema=schema))


def with_measurement(content: bytes, name: str, values: Sequence[float | None]) -> bytes:
    """Return a parquet file of samples with the values as its column of a measurement, all other columns as they were."""
    with _opened(content) as file:
        table = file.read(use_threads=False)
    column = pyarrow.array(values, type=pyarrow.float64())
    place = table.schema.get_field_index(name)
    return _written(table.append_column(name, column) if place < 0 else table.set_column(place, name, column))


def most_bytes(record: Record) -> int:
    """Return more bytes than the parquet file of a cell with these images can have."""
    pixels: int = max(CHANNELS) * record.config["scenario"]["image_size"] ** 2
    return BYTES_PER_FILE + record.n_total * (BYTES_PER_ROW + 2 * len(PICTURES) * pixels * 4)


def to_frame(content: bytes, record: Record) -> pd.DataFrame:
    """Return the rows of a parquet file; `original` and `reconstruction` are (H, W, C) float32 arrays again.

    A measurement that the file lacks is NaN, and one that is no metric any more is left out.

    Raises:
        Damaged: it is no parquet file, or does not hold what `to_parquet` writes for such a record.
    """
    try:
        with _opened(content) as file:
            if not _fits(file.schema_arrow):
                raise Damaged("its columns are not those of samples")
            if not file.metadata.num_rows <= record.n_total:
                raise Damaged("it has more rows than the cell has images")
            frame: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except MemoryError:  # also pyarrow's, which is an `ArrowException` as well
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
    """Return whether the columns are the fixed ones and measurements, `RANKED` among them, each once."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    measured = {name: kind for name, kind in kinds.items() if name not in FIXED}
    return (
        len(kinds) == len(schema.names)
        and FIXED.items() <= kinds.items()
        and RANKED in measured
        and all(kind == pyarrow.float64() for kind in measured.values())
    )


def _stored(value: object) -> object:
    """Return a value as its column holds it; an attack of somebody else's may report any text and any integer."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype="<f4").tobytes()
    if isinstance(value, int):
        return min(max(value, -LARGEST_INTEGER), LARGEST_INTEGER)
    return writable(value) if isinstance(value, str) else value


def _check(frame: pd.DataFrame, record: Record) -> None:
    """Refuse rows that no judge writes and that a table or figure would stumble over.

    Raises:
        Damaged: there are such rows, or none where there must be some.
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
    """Return whether every value that there is lies within the bounds."""
    return bool((values.isna() | values.between(low - SLACK, high + SLACK)).all())


def _picture(raw: bytes, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = [int(side) for side in shape if side == side]  # a missing side is NaN
    if len(size) != 3 or min(size) < 1 or size[2] not in CHANNELS or 4 * size[0] * size[1] * size[2] != len(raw):
        raise Damaged("it has a picture of another size than its shape says")
    return np.frombuffer(raw, dtype="<f4").reshape(size)
