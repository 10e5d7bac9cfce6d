"""What an update still says about the client's gradient, after a defense pruned, rounded or covered it with noise.

The public parameters of the defense state how coordinates were lost. Pruned coordinates are zero in the update, and the others
are known. A rounded coordinate lies within half a cell, so its error has a standard deviation of about the width / sqrt(12).
The size of added noise is public, or follows from its ratio to the update. Several losses add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.disclosure import User
from benchmark.matching.objectives import relative_noise
from benchmark.types import Observation, PublicParameters
from benchmark.vectors import level_width

RESTORATION_PARAMETERS = PublicParameters.used_by(User.RESTORATION)
"""The public parameters that `measurements` uses."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One tensor of the update as a measurement of the tensor before the losses.

    Attributes:
        values: the transmitted tensor.
        known: bool, of the same shape: False where the coordinate was pruned.
        std: standard deviation of the errors of the known coordinates; 0 if they are exact.
        noise: the part of it that comes from noise, which does not depend on the values. Rounding errors do.
    """

    values: Tensor
    known: Tensor
    std: float
    noise: float


def measurements(observation: Observation) -> Mapping[str, Measurement]:
    """Return the tensors of an update as measurements, by name.

    The result is empty if the defense states no loss, or sends signs only: their error is as large as the gradient.
    """
    public = observation.public
    pruned = public.kept_share is not None and public.kept_share < 1
    noise = _noise(observation)
    if not (pruned or noise or public.bits) or public.bits == 1:
        return {}
    found = {}
    for name, value in observation.update.items():
        cell = float(level_width(value, public.bits)) / math.sqrt(12) if public.bits else 0.0
        known = value != 0 if pruned else torch.ones_like(value, dtype=torch.bool)
        found[name] = Measurement(value, known, math.hypot(noise, cell), noise)
    return found


def _noise(observation: Observation) -> float:
    """Return the standard deviation of the noise on each coordinate of the update."""
    public = observation.public
    ratio = public.gaussian_ratio or public.laplace_ratio
    if not ratio:
        return public.noise_std or 0.0
    relative = relative_noise(ratio, {name: value[None] for name, value in observation.update.items()})
    return math.hypot(public.noise_std or 0.0, float(relative))
