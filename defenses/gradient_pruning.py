"""Gradient pruning: only the coordinates of largest magnitude leave the client, the others are sent as zero.

Source: after the abstract of Zhu, Liu and Han 2019 (arXiv 1906.08935)

Ours: one threshold over the whole update, and no memory between rounds of what was pruned. Each client prunes its own update
after its local steps, so a sum of several clients may hold more coordinates.

`keep` is the share of coordinates that is kept, in (0, 1]; 1 changes nothing. Cost: one pass of selection over the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import Share
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import keep


@dataclass(frozen=True, kw_only=True)
class GradientPruning(Defense):
    """Parameters.

    Attributes:
        keep: share of the coordinates that is kept.
    """

    keep: Share = 0.1

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """See `Defense.release`: exactly max(1, round(keep * n)) of the n coordinates stay as they are."""
        return keep(update, torch.cat([value.abs().flatten() for value in update.values()]), self.keep)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=self.keep)
