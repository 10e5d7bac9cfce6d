"""L-BFGS on whitened gradients, with new whitening as the images get better. For large images.

Source: ours

Each layer's difference of gradients is whitened by two covariances: of its input patches and of the derivatives that flow back
to its output (`benchmark.attacks._whitening` gives the reason). They are computed for guesses of the images: the current
images with random fields added (`benchmark.attacks._fields`). Later stages add weaker fields (`SPREADS`).

Each stage is an L-BFGS search on the distance made at its beginning. No later stage is longer than all stages before it
together. Evaluations that a stage does not use remain for later stages. The first stage starts at the mean colour of public
images. The loss in a row is the loss of the last finished stage, relative to the mean over the guesses that its distance was
made for.

We chose stages, fields and damping on four crops of three photographs that no table shows (`china` and `flower` of
scikit-learn, `grace_hopper` of matplotlib), at 64x64. We tried about 50 settings, not all of them on all four crops. We chose
the length of stages on two of these photographs at 128x128. Equal stages of 50 evaluations were tried there too, but for 150
evaluations at most. The attack runs a single search. Several searches, of which the better half continued, did worse. This was
tried with growing stages only once, on four photographs of 32x32 pixels with 100 evaluations.

The distance is adapted to pruning and clipping, to one step of Adam and to rounded messages, but not to noise on the update or
to a defense that rounds. Whitening amplifies both, as it amplifies all small components. After local steps in known order the
covariances treat them as one batch, but the search is exact.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); if that is refused, nothing is reconstructed.
The attack needs the noise. The victims of a call share one stream of fields, so a victim's fields depend on which other
victims are still searched.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation. Each guess of a stage
counts as one evaluation and costs two passes forward and back. Not counted: two decompositions per layer for each distance, of
size C K^2 + 1 and of size O, the number of outputs. Their cost grows with the cube of these sizes. Memory: the roots of all
victims take 46 MB each on `small` and, computed from their shapes, 1.5 GB on `ddpm-cifar10` and 2.6 GB on `wide-128`. The
engine does not predict this memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Annotated, ClassVar

import torch

from benchmark.attacks._fields import fields
from benchmark.attacks._whitening import NothingToCompare, whitened_distance
from benchmark.base.ranges import MAX_NUMBER, Count, Positive, Range
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.defense_aware import COMPARISON_PARAMETERS
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess, mean_colour_start
from benchmark.matching.search import Solution
from benchmark.outlook import Diagnosis, Outlook, refusal_or_unknown
from benchmark.plugins import MatchingAttack
from benchmark.types import Capability, Observation, Reconstruction

SPREADS = (1.0, 0.5, 0.5, 0.25)
"""Strength of the fields in the first stages, as a share of a photograph's contrast. Later stages use the last value."""


@dataclass(frozen=True, kw_only=True)
class Whitened(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, guesses included.
        stage: evaluations of the first stage, guesses included.
        damping: added to each covariance, as a share of its largest eigenvalue.
        guesses: images for which a stage's distance is made; fewer if they would take most of the budget. A later stage
            without room for all of them does not begin.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = COMPARISON_PARAMETERS | {"least_timestep"}

    evaluations: Annotated[int, Range(3, MAX_NUMBER)] = 800
    stage: Count = 50
    damping: Positive = 1e-4
    guesses: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage < self.guesses + 2:
            raise ValueError(f"stage must be at least {self.guesses + 2}, two more than guesses, not {self.stage}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._search(known, generator))

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return refusal_or_unknown(diagnosis)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        victims = [
            _VictimSearch(observation, Solution({"x_0": mean_colour_start(observation)}, math.inf, 0))
            for observation in observations
        ]
        for number, spread in enumerate(chain(SPREADS, repeat(SPREADS[-1]))):
            if not self._stage(victims, self.stage << max(0, number - 1), spread, generator):
                break
        return [victim.reconstruction() for victim in victims]

    def _stage(self, victims: Sequence[_VictimSearch], length: int, spread: float, generator: torch.Generator) -> bool:
        """Run one stage and return whether any victim was searched. On return, the memory of its distances is free."""
        tasks = [self._task(victim, length, spread, generator) for victim in victims]
        active = [(victim, task) for victim, task in zip(victims, tasks, strict=True) if task]
        solutions = match([task for _, task in active], clean_guess, squared_distance, lbfgs)  # each task has its own distance
        for (victim, _), solution in zip(active, solutions, strict=True):
            victim.accept(solution)
        return bool(active)

    def _task(self, victim: _VictimSearch, length: int, spread: float, generator: torch.Generator) -> Task | None:
        """Return a victim's search of one stage, and charge its guesses. Return None if the victim has ended or lacks budget.

        A search needs at least two evaluations: the first one evaluates its start.
        """
        size, left = min(self.guesses, self.evaluations // 2), self.evaluations - victim.spent
        if victim.ended or left < size + 2:
            return None
        x_0 = victim.found.variables["x_0"]
        guesses = x_0 + spread * fields((size, *x_0.shape), generator).to(x_0)
        victim.spent += size
        try:
            distance = whitened_distance(victim.observation, guesses, self.damping)
        except NothingToCompare as reason:
            victim.ended = str(reason)
            return None
        return Task(victim.observation, {"x_0": x_0}, min(length, left) - size, distance)


@dataclass(eq=False)
class _VictimSearch:
    """The state of one victim's search.

    Attributes:
        observation: what the attack received.
        found: the result of the last finished stage, at first the flat image.
        spent: evaluations so far.
        ended: why no further stage runs although budget is left; None while the search may continue.
    """

    observation: Observation
    found: Solution
    spent: int = 0
    ended: str | None = None

    def accept(self, solution: Solution) -> None:
        """Replace the current images by the result of a stage. If the stage diverged, keep them and end the search."""
        self.spent += solution.evaluations
        if solution.diverged:
            self.ended = solution.diverged
        else:
            self.found = solution

    def reconstruction(self) -> Reconstruction:
        """Return the images of the last finished stage. If no stage finished, they are marked as diverged."""
        rebuilt = dataclasses.replace(self.found, evaluations=self.spent).reconstruction()
        if self.found.loss == math.inf:
            return dataclasses.replace(rebuilt, diverged=self.ended)
        return dataclasses.replace(rebuilt, note=f"ended early: {self.ended}" if self.ended else "")
