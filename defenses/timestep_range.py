"""Timestep range: clients train only on noisy timesteps, from a smallest one on.

Source: ours; arXiv 2504.00952, which was not read, splits timesteps between clients and a server

At large t the image is behind much noise, so an update reveals less of it. The server has to learn small t from other data.

If the scenario draws timesteps, they are drawn uniformly from [least, T). The range does not change which of two victims has
the larger timestep. If the scenario fixes a timestep below `least`, the defense refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.base.errors import UserError
from benchmark.base.ranges import Natural
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class TimestepRange(Defense):
    """Hyper-parameters.

    Attributes:
        least: smallest timestep that clients train on, at least 0 and below the model's T.
    """

    least: Natural = 500

    def least_timestep(self, scenario: Scenario, steps: int) -> int:
        """See `Defense.least_timestep`."""
        if self.least >= steps:
            raise UserError(f"timestep_range: least must be below the model's {steps} timesteps, not {self.least}")
        if below := [t for t in scenario.fixed_timesteps if t < self.least]:
            raise UserError(f"timestep_range trains from t = {self.least} on, and the scenario fixes t = {min(below)}")
        return self.least

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(least_timestep=self.least)
