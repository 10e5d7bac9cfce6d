"""Gaussian noise on the update, as large as a share of the update itself; no formal guarantee.

Source: after the abstract of Zhu, Liu and Han 2019 (arXiv 1906.08935), which adds noise to gradients

The noise's expected norm is `ratio` times the update's. That share is public; the noise's own deviation is not, since it
follows from the private update, which is why there is no epsilon. Each client adds its own. Cost: one pass over the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import NonNegative
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import add_relative_noise, gaussian


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Defense):
    """Parameters.

    Attributes:
        ratio: root mean square of the noise, in units of that of a client's update.
    """

    ratio: NonNegative = 1.0

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        return add_relative_noise(update, self.ratio, gaussian, generator)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(gaussian_ratio=self.ratio)
