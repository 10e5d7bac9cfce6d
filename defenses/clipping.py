"""Clipping alone: a client scales its update down to an l2 norm if the update is longer.

Source: ours, half of `client_dp` without its noise

Clipping keeps the direction, so an attack that compares directions loses nothing. The benchmark has it because some take it for
a defense, and because it can be stacked with noise. Cost: one pass over the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import Positive
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import clip_to_norm


@dataclass(frozen=True, kw_only=True)
class Clipping(Defense):
    """Hyper-parameters.

    Attributes:
        clip: largest l2 norm of a client's update.
    """

    clip: Positive = 0.1

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        return clip_to_norm(update, self.clip)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(update_clip_norm=self.clip)
