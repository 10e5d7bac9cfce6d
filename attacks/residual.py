"""The search over the noisy image and the residual, for clients that keep their noise private.

Source: ours

At a fixed noisy image x_t the update is linear in the residual r = net(x_t, t) - target (`benchmark.attacks._residual`). So
L-BFGS minimises the squared distance over x_t and r instead of image and noise, and both follow from x_t and r. If several
local steps are simulated, image and noise are searched after all. Then each r belongs to local weights that the server never
received.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); if that is refused, nothing is reconstructed. If
the noise is granted, the image alone is searched. x_t starts at the mean colour of public images with noise added, r at zero.
Restarts share the budget, and the lowest matching loss wins.

The distance is adapted to the defense (`benchmark.matching.defense_aware`): pruned coordinates are left out, the guess is
clipped, and rounded coordinates and Laplace noise have distances of their own. With adapters, withheld layers or summed
clients, the attack compares only what the server receives, for all clients' images at once.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.attacks._residual import ENOUGH_EVALUATIONS, default_start, search
from benchmark.base.ranges import Count
from benchmark.closed_form.losses import RESTORATION_PARAMETERS
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.defense_aware import DISTANCE_PARAMETERS
from benchmark.matching.search import best_of_each, check_restarts
from benchmark.outlook import Diagnosis, Outlook, of_adaptive_search
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class Residual(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, restarts included.
        restarts: independent starts; the one with the lowest matching loss wins.
    """

    adapts_to: ClassVar[frozenset[str]] = DISTANCE_PARAMETERS | RESTORATION_PARAMETERS | {"least_timestep"}

    evaluations: Count = 1000
    restarts: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_restarts(self.evaluations, self.restarts)

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._search(known, generator), adaptive=True)

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return of_adaptive_search(diagnosis, self.evaluations // self.restarts, ENOUGH_EVALUATIONS, success_db)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        each = [observation for observation in observations for _ in range(self.restarts)]
        budgets = [self.evaluations // self.restarts] * len(each)
        found = search(each, [default_start(observation, generator) for observation in each], budgets)
        return [best.reconstruction() for best in best_of_each(found, self.restarts)]
