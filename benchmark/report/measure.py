"""Measure the stored images of a finished run by one metric, for example a new one or one that was not available in the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.base.errors import UserError, shown
from benchmark.evaluation.metric import Measure
from benchmark.evaluation.metrics import measures
from benchmark.experiment.store import DamagedCell, Store


def measure(store: Store, name: str) -> int:
    """Measure the images of all cells in the latest plan, store the values, and return the number of images.

    Each cell is saved as soon as it is measured. A cell that cannot be read is not changed. The report names it.

    Raises:
        UserError: no metric of images has this name, the metric cannot be measured on this machine, or the store is not a
            run directory that can be written.
    """
    if name not in measures():
        raise UserError(f"unknown metric of images {shown(name)}; known are: {', '.join(measures())}")
    metric = measures()[name]
    if reason := metric.missing():
        raise UserError(f"{metric.title} cannot be measured: {reason}")
    identities = store.plan()["cells"]
    count = 0
    with store.writing():
        for identity in dict.fromkeys(identities):
            try:
                cell = store.read(identity)
            except DamagedCell:
                continue
            if cell and len(cell.samples):
                values = [_value(metric, row) for row in cell.samples.itertuples()]
                store.amend(cell, name, values)
                count += len(values)
    return count


def _value(metric: Measure, row: Any) -> float | None:
    return metric.of(_image(row.original), _image(row.reconstruction)) if row.status == "ok" else None


def _image(picture: NDArray[np.float32]) -> Tensor:
    """Return a stored picture (H, W, C) as (C, H, W), the layout of the judge, so that sums run in the same order."""
    return torch.from_numpy(np.moveaxis(picture, -1, 0).copy())
