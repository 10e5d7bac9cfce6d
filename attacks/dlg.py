"""Deep Leakage from Gradients: L-BFGS on the squared distance between the guessed and the observed update.

Source: Zhu, Liu and Han 2019 (arXiv 1906.08935); github mit-han-lab/dlg at commit 00d4f86, main.py

As in the source: dummy data from N(0, 1), the squared distance summed over all parameters, torch's L-BFGS with step 1.

The attack needs the timestep. A private one is read in closed form (ours, `benchmark.closed_form.timesteps`); if that is
refused, nothing is reconstructed. Private noise is a second dummy variable, optimised together with the images, as the paper
does with labels.

A client's update after one step of Adam is taken for a gradient. Several steps are simulated (`problem.unrolls_local_steps`).

Deviations, ours: a strong Wolfe line search (the reference code has none). The budget counts evaluations (one loss with
gradient); the reference takes 300 steps of up to 20 iterations each. Restarts share the budget, and the lowest matching loss
wins (the reference has one start).

Shapes: images (B, C, H, W), unbounded during the search. Cost: one double backward through the network per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.base.ranges import Count
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess, gaussian_start, start_variables
from benchmark.matching.search import best_of_each, check_restarts
from benchmark.outlook import Diagnosis, Outlook, of_search
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction

ENOUGH_EVALUATIONS = 100
"""Evaluations per image with which the search has recovered images in results/defenses; 40 were too few in results/default."""


@dataclass(frozen=True, kw_only=True)
class DLG(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, restarts included.
        restarts: independent starts; the one with the lowest matching loss wins.
    """

    adapts_to: ClassVar[frozenset[str]] = frozenset({"least_timestep"})

    evaluations: Count = 300
    restarts: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_restarts(self.evaluations, self.restarts)

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._search(known, generator))

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return of_search(diagnosis, self.evaluations // self.restarts, ENOUGH_EVALUATIONS, success_db)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        share = self.evaluations // self.restarts
        tasks = [
            Task(observation, start_variables(observation, gaussian_start(observation, generator), generator), share)
            for observation in observations
            for _ in range(self.restarts)
        ]
        found = match(tasks, clean_guess, squared_distance, lbfgs)
        return [best.reconstruction() for best in best_of_each(found, self.restarts)]
