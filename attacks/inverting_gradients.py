"""Inverting Gradients: signed Adam on the cosine distance between updates plus total variation of the image.

Source: after the abstract of Geiping et al. 2020 (arXiv 2003.14053); github JonasGeiping/invertinggradients at commit
0356675

As in reconstruct_image.py (`--optim ours`) and inversefed/reconstruction_algorithms.py of that repository: start from N(0, 1),
Adam on the gradient's sign with step 0.1, divided by ten at 3/8, 5/8 and 7/8 of 4,000 iterations, clipped to the image range
after each one. A restart is scored by its matching loss.

The attack assumes that timestep and noise are known. A private timestep is read in closed form (ours,
`benchmark.closed_form.timesteps`); if that is refused, nothing is reconstructed.

A client's update after one step of Adam is taken for a gradient. Several steps are simulated (`problem.unrolls_local_steps`).

Deviations, ours: images lie in [-1, 1]. The reference normalises by the data set's mean and standard deviation, so step and
total variation have somewhat different weights there. Restarts share the budget. The best iterate by the regularised loss is
returned, not the last. The weight of the total variation is chosen for images in [-1, 1] (the reference leaves it to its
command line).

Shapes: images (B, C, H, W) in [-1, 1]. Cost: one double backward through the network per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from benchmark.base.ranges import Count, NonNegative, Positive
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.adam import signed_adam
from benchmark.matching.engine import Task, match
from benchmark.matching.objectives import cosine_distance, total_variation
from benchmark.matching.problem import clean_guess, gaussian_start
from benchmark.matching.search import best_of_each, check_restarts
from benchmark.outlook import Diagnosis, Outlook, refusal_or_unknown
from benchmark.plugins import MatchingAttack
from benchmark.types import Capability, Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, restarts included.
        lr: first step of Adam, in units of the image range [-1, 1].
        tv: weight of the total variation.
        restarts: independent starts; the one with the lowest matching loss wins.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = frozenset({"least_timestep"})

    evaluations: Count = 4000
    lr: Positive = 0.1
    tv: NonNegative = 1e-4
    restarts: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_restarts(self.evaluations, self.restarts)

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._search(known, generator))

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return refusal_or_unknown(diagnosis)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        share = self.evaluations // self.restarts
        starts = [
            (observation, {"x_0": gaussian_start(observation, generator)})
            for observation in observations
            for _ in range(self.restarts)
        ]
        tasks = [Task(observation, start, share) for observation, start in starts]
        optimise = partial(signed_adam, lr=self.lr, bounds=(-1.0, 1.0))
        found = match(tasks, clean_guess, cosine_distance, optimise, lambda v: self.tv * total_variation(v["x_0"]))
        return [best.reconstruction() for best in best_of_each(found, self.restarts)]
