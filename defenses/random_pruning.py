"""Random pruning: a random share of the coordinates leaves the client, the others are sent as zero.

Source: ours, the reference for `gradient_pruning`: as many coordinates, but not the largest

Which coordinates are kept is drawn anew for each client and round; the server sees them. What is kept is not scaled up. Cost:
one random number for each coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import Share
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import keep, size


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Defense):
    """Parameters.

    Attributes:
        keep: share of the coordinates that is kept.
    """

    keep: Share = 0.1

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """See `Defense.release`: exactly max(1, round(keep * n)) of the n coordinates stay as they are."""
        return keep(update, torch.rand(size(update), generator=generator), self.keep)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=self.keep)
