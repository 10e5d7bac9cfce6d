"""Restores weight gradients that a defense pruned, rounded or covered with noise. This method is ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmark.closed_form.losses import Measurement, measurements
from benchmark.closed_form.low_rank import Estimate, completed, overlapping, separate, shrunk
from benchmark.types import Observation


@dataclass(frozen=True)
class Layer:
    """A layer whose weight gradient has low rank or repeats its input.

    Attributes:
        name: the name of its module.
        height: height of its output; 1 for a linear layer on one vector.
        width: width of its output.
        overlaps: whether it is a 3 x 3 convolution of stride 1 and padding 1.
    """

    name: str
    height: int
    width: int
    overlaps: bool

    @property
    def table(self) -> Tensor:
        """Return how its patches repeat its input, see `low_rank.completed`."""
        return overlapping(self.height, self.width) if self.overlaps else separate(self.height * self.width)


@dataclass(frozen=True, eq=False)
class Restoration:
    """An update with restored layers.

    Attributes:
        observation: the observation with the restored gradients in place of the transmitted ones.
        errors: upper estimates of the squared errors of the restored weights as shares of their squares, by layer.
        lossy: whether the defense states a loss.
    """

    observation: Observation
    errors: Mapping[str, float]
    lossy: bool

    @property
    def legible(self) -> Observation:
        """Return the observation with only those tensors that were restored, or with all if nothing was lost."""
        if not self.lossy:
            return self.observation
        names = [f"{layer}.weight" for layer in self.errors]
        return dataclasses.replace(self.observation, update={name: self.observation.update[name] for name in names})


def restored(observation: Observation, layers: Sequence[Layer], max_error: float) -> Restoration:
    """Return an update in which the weight gradients of layers are completed and denoised, according to the defense.

    Args:
        observation: the update.
        layers: the layers to restore.
        max_error: a layer stays as it is if its restored gradient may have a larger squared error, as a share of its square.
    """
    measured = measurements(observation)
    found = {
        layer.name: _restored(measured[f"{layer.name}.weight"], layer, observation.image_count, max_error)
        for layer in layers
        if f"{layer.name}.weight" in measured
    }
    accepted = {name: estimate for name, estimate in found.items() if estimate is not None}
    update = {**observation.update, **{f"{name}.weight": estimate.values for name, estimate in accepted.items()}}
    errors = {name: estimate.error for name, estimate in accepted.items()}
    return Restoration(dataclasses.replace(observation, update=update), errors, bool(measured))


def _restored(measurement: Measurement, layer: Layer, images: int, max_error: float) -> Estimate | None:
    if not measurement.values.any():
        return None
    if measurement.known.all() and not layer.overlaps:
        estimate = shrunk(measurement, images * layer.height * layer.width)
        return estimate if estimate is not None and estimate.error <= max_error else None
    return completed(measurement, layer.table, images, max_error)
