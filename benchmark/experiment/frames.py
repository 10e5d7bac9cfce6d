"""A cell's samples as the bytes of a parquet file, and back. Neither way starts a thread, which scarce memory may refuse."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from benchmark.base.parsing import LARGEST_INTEGER
from benchmark.evaluation.judge import Sample
from benchmark.evaluation.metrics import PSNR_CAP
from benchmark.experiment.records import Damaged, Record, Status, writable

PICTURES = ("original", "reconstruction")

_KINDS = {
    **dict.fromkeys(("victim", "image", "timestep", "timestep_estimate", "timestep_error", "evaluations"), pyarrow.int64()),
    **dict.fromkeys(("source", "status", "reason"), pyarrow.string()),
    **dict.fromkeys(("mse", "psnr", "ssim", "lpips", "noise_mse", "loss"), pyarrow.float64()),
    **dict.fromkeys(PICTURES, pyarrow.binary()),
    "success": pyarrow.bool_(),
}

SCHEMA = pyarrow.schema(
    [(field.name, _KINDS[field.name]) for field in dataclasses.fields(Sample)] + [("shape", pyarrow.list_(pyarrow.int64()))]
)
"""The columns of `samples.parquet`."""

CHANNELS = (1, 3)

BYTES_PER_FILE, BYTES_PER_ROW = 2**20, 2**16
"""Room for what a parquet file holds beside the pictures, names of sources and reasons among it."""

SLACK = 1e-3
"""By how much rounding may carry a measurement over its bound."""

BOUNDS = {"psnr": (0.0, PSNR_CAP), "mse": (0.0, 1.0), "ssim": (-1.0, 1.0)}
"""Of the measurements that every image has that did not diverge."""


def to_parquet(samples: Sequence[Sample]) -> bytes:
    """Return the samples as a parquet file, a row per image."""
    columns = {name: [_stored(getattr(sample, name)) for sample in samples] for name in SCHEMA.names if name != "shape"}
    columns["shape"] = [list(sample.original.shape) for sample in samples]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pydict(columns, schema=SCHEMA), file)
    return file.getvalue()


def most_bytes(record: Record) -> int:
    """Return more bytes than the parquet file of a cell with these images can have."""
    pixels: int = max(CHANNELS) * record.config["scenario"]["image_size"] ** 2
    return BYTES_PER_FILE + record.n_total * (BYTES_PER_ROW + 2 * len(PICTURES) * pixels * 4)


def to_frame(content: bytes, record: Record) -> pd.DataFrame:
    """Return the rows of a parquet file; `original` and `reconstruction` are (H, W, C) float32 arrays again.

    Raises:
        Damaged: it is no parquet file, or does not hold what `to_parquet` writes for such a record.
    """
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), memory_map=False, pre_buffer=False) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise Damaged("its columns are not those of samples")
            if not file.metadata.num_rows <= record.n_total:
                raise Damaged("it has more rows than the cell has images")
            frame: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    except MemoryError:  # also pyarrow's, which is an `ArrowException` as well
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged("it is no whole parquet file") from error
    _check(frame, record)
    for column in PICTURES:
        frame[column] = [_picture(raw, shape) for raw, shape in zip(frame[column], frame["shape"], strict=True)]
    return frame.drop(columns="shape")


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
    if not all(ok[name].between(low - SLACK, high + SLACK).all() for name, (low, high) in BOUNDS.items()):
        raise Damaged("it has a measurement that cannot be")


def _picture(raw: bytes, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    size = [int(side) for side in shape if side == side]  # a missing side is NaN
    if len(size) != 3 or min(size) < 1 or size[2] not in CHANNELS or 4 * size[0] * size[1] * size[2] != len(raw):
        raise Damaged("it has a picture of another size than its shape says")
    return np.frombuffer(raw, dtype="<f4").reshape(size)
