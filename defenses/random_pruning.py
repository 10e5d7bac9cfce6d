"""Random pruning: the client sends a random share of the coordinates, and zero for all others.

Source: ours, the reference for `gradient_pruning`: as many coordinates, but not the largest

The kept coordinates are drawn anew for each client and round. The server sees which ones they are. Kept values are not scaled
up. Cost: one random number for each coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import Share
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import keep_highest, size


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Defense):
    """Hyper-parameters.

    Attributes:
        keep: share of the coordinates that is kept, in (0, 1].
    """

    keep: Share = 0.1

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`: exactly max(1, round(keep * n)) of the n coordinates keep their values."""
        return keep_highest(update, torch.rand(size(update), generator=generator), self.keep)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=self.keep)
