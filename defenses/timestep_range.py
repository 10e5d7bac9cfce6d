"""Clients train on noisy timesteps only: those from a least one on.

Source: ours, by analogy with arXiv 2504.00952

At large t an update tells of an image through much noise. What the server has to learn at small t it must learn from other
data.

Where the scenario draws timesteps they are drawn uniformly from [least, T), victim by victim in the order of the draw that they
take the place of. A scenario that fixes one below the least is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmark.errors import UserError
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class TimestepRange(Defense):
    """Parameters.

    Attributes:
        least: the least timestep that a client trains on, at least 0 and below the model's T.
    """

    least: int = 500

    def __post_init__(self) -> None:
        if self.least < 0:
            raise ValueError(f"least must be at least 0, not {self.least}")

    def timesteps(self, drawn: Tensor, scenario: Scenario, steps: int) -> Tensor:
        """See `Defense.timesteps`."""
        if self.least >= steps:
            raise UserError(f"timestep_range: least must be below the model's {steps} timesteps, not {self.least}")
        if not scenario.fixed_timesteps:
            return self.least + drawn * (steps - self.least) // steps
        if (drawn < self.least).any():
            raise UserError(f"timestep_range trains from t = {self.least} on, and the scenario fixes t = {int(drawn.min())}")
        return drawn

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(least_timestep=self.least)
