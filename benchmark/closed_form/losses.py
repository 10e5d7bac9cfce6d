"""What an update still says about the client's gradient: after Adam or rounding, or after a defense pruned or disturbed it.

The public parameters of the defense state how coordinates were lost. Pruned coordinates are zero in the update, and the others
are known. Coordinates that were clipped to a limit are lost, too: only a bound is left. A rounded coordinate lies within half a
cell, so its error has a standard deviation of about the width / sqrt(12). The size of added noise is public, or follows from
its ratio to the update. Several losses add up.

The first step of Adam, and weights that were rounded, give an interval for each coordinate (`first_step`). Where it is narrow,
the coordinate is known. Pruning and limits leave the other coordinates readable. If a defense adds noise or rounds, nothing is
read through both. Under noise, nobody sees which coordinates were clipped to a limit, so nothing is read either.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.disclosure import User
from benchmark.matching.first_step import Interval, gradient_interval, why_unreadable
from benchmark.matching.objectives import relative_noise
from benchmark.types import Observation, PublicParameters
from benchmark.vectors import REACHED, level_width

RESTORATION_PARAMETERS = PublicParameters.used_by(User.RESTORATION)
"""The public parameters that `measurements` uses."""


READ = 0.05
"""Half of the interval of a known coordinate, at most this share of its value."""

NEGLIGIBLE = 0.01
"""A coordinate is known, too, if half of its interval is below this share of the tensor's root mean square."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One tensor of the update as a measurement of the tensor before the losses.

    Attributes:
        values: the transmitted tensor, or what was read from it; 0 where nothing is known.
        known: bool, of the same shape: False where the coordinate was pruned, clipped to a limit, or cannot be read.
        std: standard deviation of the errors of the known coordinates; 0 if they are exact.
        noise: the part of it that comes from noise, which does not depend on the values. Rounding errors do.
        errors: the standard deviations of single coordinates where they differ.
    """

    values: Tensor
    known: Tensor
    std: float
    noise: float
    errors: Tensor | None = None

    @property
    def precision(self) -> float:
        """Return the errors' standard deviation as a share of the root mean square; infinite if a coordinate is unknown."""
        size = float(self.values.double().square().mean().sqrt())
        return self.std / size if size and bool(self.known.all()) else math.inf


def is_lossy(observation: Observation) -> bool:
    """Return whether an update has `measurements`, without computing them.

    It has none if it is the gradient itself, or if nothing can be read: the defense sends signs only, whose error is as large
    as the gradient, or it disturbs what the optimiser or the message left, or several steps of Adam lie behind the update.
    """
    public = observation.public
    noise = public.noise_std or public.gaussian_ratio or public.laplace_ratio or public.laplace_std
    if not observation.is_gradient:
        return not (noise or public.bits) and why_unreadable(observation) is None
    if public.bits == 1 or (public.coordinate_limit and noise):
        return False
    return bool(_is_pruned(public) or public.coordinate_limit or noise or public.bits)


def measurements(observation: Observation, names: Collection[str] | None = None) -> Mapping[str, Measurement]:
    """Return the tensors of an update as measurements, by name; empty if the update has none (`is_lossy`).

    Args:
        observation: the update.
        names: the tensors to return, those that were sent; None for all. A tensor of Adam costs some passes over it.
    """
    if not is_lossy(observation):
        return {}
    wanted = [name for name in observation.update if names is None or name in names]
    if observation.is_gradient:
        noise = _noise(observation)
        return {name: _of_defense(observation.public, observation.update[name], noise) for name in wanted}
    return {name: _of_interval(gradient_interval(observation, name)) for name in wanted}


def _is_pruned(public: PublicParameters) -> bool:
    return public.kept_share is not None and public.kept_share < 1


def _of_defense(public: PublicParameters, value: Tensor, noise: float) -> Measurement:
    cell = float(level_width(value, public.bits)) / math.sqrt(12) if public.bits else 0.0
    known = value != 0 if _is_pruned(public) else torch.ones_like(value, dtype=torch.bool)
    known = known & (value.abs() < REACHED * public.coordinate_limit) if public.coordinate_limit else known
    return Measurement(value, known, math.hypot(noise, cell), noise)


def _of_interval(interval: Interval) -> Measurement:
    half, finite = (interval.high - interval.low) / 2, interval.low.isfinite() & interval.high.isfinite()
    size = float(interval.value[finite].square().mean().sqrt()) if finite.any() else 0.0
    known = finite & (interval.known(READ) | (half <= NEGLIGIBLE * size))
    errors = torch.where(known, half / math.sqrt(3), 0)
    std = float(errors[known].square().mean().sqrt()) if known.any() else 0.0
    values = torch.where(known, interval.value, 0).float()
    return Measurement(values, known, std, 0.0, errors)


def _noise(observation: Observation) -> float:
    """Return the standard deviation of the noise on each coordinate of the update."""
    public = observation.public
    known = math.hypot(public.noise_std or 0.0, public.laplace_std or 0.0)
    ratio = public.gaussian_ratio or public.laplace_ratio
    if not ratio:
        return known
    relative = relative_noise(ratio, {name: value[None] for name, value in observation.update.items()})
    return math.hypot(known, float(relative))
