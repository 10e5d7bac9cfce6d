"""Gradient pruning: the client sends only the coordinates of largest magnitude, and zero for all others.

Source: after the abstract of Zhu, Liu and Han 2019 (arXiv 1906.08935)

Ours: one threshold for the whole update, and pruned values are not carried over to the next round. Each client prunes its own
update after its local steps, so the sum of several clients may have more nonzero coordinates.

`keep` is the share of coordinates that is kept, in (0, 1]; 1 changes nothing. Cost: one selection over the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import Share
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import keep_highest


@dataclass(frozen=True, kw_only=True)
class GradientPruning(Defense):
    """Hyper-parameters.

    Attributes:
        keep: share of the coordinates that is kept, in (0, 1].
    """

    keep: Share = 0.1

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`: exactly max(1, round(keep * n)) of the n coordinates keep their values."""
        return keep_highest(update, torch.cat([value.abs().flatten() for value in update.values()]), self.keep)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=self.keep)
