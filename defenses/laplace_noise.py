"""Laplace noise on the update, scaled to the size of the update itself; without a formal guarantee.

Source: after the abstract of Zhu, Liu and Han 2019 (arXiv 1906.08935), which adds noise to gradients

The expected norm of the noise is `ratio` times the norm of the update. The ratio is public. The standard deviation of the noise
is not, because it follows from the private update. This is why the defense has no epsilon. Each client adds its own noise.
Cost: one pass over the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import NonNegative
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import add_relative_noise, laplace


@dataclass(frozen=True, kw_only=True)
class LaplaceNoise(Defense):
    """Hyper-parameters.

    Attributes:
        ratio: root mean square of the noise, divided by the root mean square of the client's update.
    """

    ratio: NonNegative = 1.0

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        return add_relative_noise(update, self.ratio, laplace, generator)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(laplace_ratio=self.ratio)
