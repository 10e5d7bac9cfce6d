"""Plain Adam on the squared distance between the guessed and the observed update: the loop that everybody writes first.

Source: ours, as the reference that stronger attacks are compared with

The search starts from N(0, 1). Adam's step of 0.05 falls to zero along a half cosine. The squared distance is summed over all
parameters. There is no regulariser and no bound. The budget of 300 evaluations is ours. It equals the budget of `dlg`, so the
two differ in the optimiser alone.

The attack assumes that the timestep is known, as `dlg` does. A private timestep is read in closed form, and private noise is
searched jointly with the images, as in `dlg`.

A client's update after one step of Adam is taken for a gradient. Several steps are simulated (`problem.unrolls_local_steps`).

Shapes: images (B, C, H, W), unbounded during the search. Cost: one double backward through the network per evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from benchmark.base.ranges import Count, Positive
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.adam import adam, cosine_decay
from benchmark.matching.engine import Task, match
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess, gaussian_start, start_variables
from benchmark.outlook import Diagnosis, Outlook, refusal_or_unknown
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class AdamL2(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim.
        lr: first step of Adam, in units of the image range [-1, 1] and of the noise's standard deviation.
    """

    adapts_to: ClassVar[frozenset[str]] = frozenset({"least_timestep"})

    evaluations: Count = 300
    lr: Positive = 0.05

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._search(known, generator))

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return refusal_or_unknown(diagnosis)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        tasks = [
            Task(observation, start_variables(observation, gaussian_start(observation, generator), generator), self.evaluations)
            for observation in observations
        ]
        optimise = partial(adam, lr=self.lr, decay=cosine_decay)
        return [found.reconstruction() for found in match(tasks, clean_guess, squared_distance, optimise)]
