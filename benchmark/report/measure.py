"""Measure the stored images of a finished run by one metric: a new one, or one that could not be measured when it ran."""

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
    """Measure the images of the latest plan's cells, store the values with them, and return how many images that were.

    A cell is kept as soon as it is measured. One that cannot be read is left as it is; the report names it.

    Raises:
        UserError: no metric of images has this name, it cannot be measured here, or this is no run directory that can be
            written.
    """
    if name not in measures():
        raise UserError(f"unknown metric of images {shown(name)}; known are: {', '.join(measures())}")
    chosen = measures()[name]
    if reason := chosen.missing():
        raise UserError(f"{chosen.title} cannot be measured: {reason}")
    identities = store.plan()["cells"]
    count = 0
    with store.writing():
        for identity in dict.fromkeys(identities):
            try:
                cell = store.read(identity)
            except DamagedCell:
                continue
            if cell and len(cell.samples):
                values = [_value(chosen, row) for row in cell.samples.itertuples()]
                store.amend(cell, name, values)
                count += len(values)
    return count


def _value(chosen: Measure, row: Any) -> float | None:
    return chosen.of(_image(row.original), _image(row.reconstruction)) if row.status == "ok" else None


def _image(picture: NDArray[np.float32]) -> Tensor:
    """Return a stored picture, (H, W, C), as the judge had it: (C, H, W), so that sums run in the same order."""
    return torch.from_numpy(np.moveaxis(picture, -1, 0).copy())
