"""Random pruning: a random share of the coordinates leaves the client, the others are sent as zero.

Source: ours, the reference for `gradient_pruning`: as many coordinates, but not the largest

Which coordinates are kept is drawn anew for each client and round; the server sees them. What is kept is not scaled up. Cost:
one random number for each coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import keep, size


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Defense):
    """Parameters.

    Attributes:
        keep: share of coordinates that is kept, in (0, 1].
    """

    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {self.keep:g}")

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """See `Defense.release`: exactly max(1, round(keep * n)) of the n coordinates stay as they are."""
        return keep(update, torch.rand(size(update), generator=generator), self.keep)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=self.keep)
