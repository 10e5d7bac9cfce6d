"""Restores weight gradients that a defense pruned, rounded or covered with noise. This method is ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.closed_form.losses import Measurement, is_lossy, measurements
from benchmark.closed_form.low_rank import Estimate, completed, overlapping, separate, shrunk
from benchmark.closed_form.sites import Site
from benchmark.types import Observation

PRECISE = 1e-2
"""Relative error of complete measurements below which their rank alone denoises them: overlaps add little and cost much."""


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


def restored(observation: Observation, sites: Sequence[Site], max_error: float) -> Restoration:
    """Return an update in which the weight gradients of layers are completed and denoised, according to the defense.

    Args:
        observation: the update.
        sites: the layers to restore.
        max_error: a layer stays as it is if its restored gradient may have a larger squared error, as a share of its square.
    """
    measured = measurements(observation, [f"{site.name}.weight" for site in sites])
    found = {
        site.name: restored_layer(measured[f"{site.name}.weight"], site, observation.image_count, max_error)
        for site in sites
        if f"{site.name}.weight" in measured
    }
    accepted = {name: estimate for name, estimate in found.items() if estimate is not None}
    update = {**observation.update, **{f"{name}.weight": estimate.values for name, estimate in accepted.items()}}
    errors = {name: estimate.error for name, estimate in accepted.items()}
    return Restoration(dataclasses.replace(observation, update=update), errors, is_lossy(observation))


def restored_layer(measurement: Measurement, site: Site, images: int, max_error: float) -> Estimate | None:
    """Return the gradient of one layer without its losses; None if its squared error could exceed a share of its square."""
    if not measurement.values.any():
        return None
    positions, complete = site.height * site.width, bool(measurement.known.all())
    if complete and not measurement.std:
        return Estimate(measurement.values, 0.0)
    rank = images * positions
    by_rank = measurement.precision < PRECISE and rank < min(measurement.values.flatten(1).shape)
    if complete and (by_rank or not site.overlaps):
        estimate = shrunk(measurement, rank)
        return estimate if estimate is not None and estimate.error <= max_error else None
    table = overlapping(site.height, site.width) if site.overlaps else separate(positions)
    return completed(measurement, table, images, max_error)
