"""L-BFGS on whitened gradients, whitened anew as the images get better. For large images.

Source: ours

Each layer's difference of gradients is whitened by the covariances of its patches and of what flows back to them
(`benchmark.attacks._whitening`, which says what it is meant for), as they are for guesses at the images: what was found so far,
with random fields added (`benchmark.attacks._fields`), weaker ones in later stages (`SPREADS`).

A stage is L-BFGS on the distance that was made where it begins, and at most as long as all stages before it; what it leaves of
its evaluations goes to later ones. The first begins at the mean colour of public images. The loss that a row shows is that of
the last stage that was finished, relative to the mean over the guesses that its distance was made for.

Stages, fields and damping were chosen on four crops of three photographs that no table shows (`china` and `flower` of
scikit-learn, `grace_hopper` of matplotlib), at 64x64, out of about 50 settings, not all of them tried on all four; the length
of stages on two of these photographs at 128x128, where equal stages of 50 evaluations were tried too, but for 150 evaluations
at most. There is one search: several, of which the better half went on, were seen beside growing stages on four photographs of
32x32 pixels with 100 evaluations alone, where they fell short.

The distance is adapted to pruning and clips. Noise on the update and rounding are not: whitening makes more of them, as it does
of everything small. After local steps in known order the covariances are those of one batch, and the search is exact.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise. The victims of a call share one stream of fields, so that a victim's depend on which others still search.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation; a stage's guesses count as
one evaluation each: two passes forward and back. Not counted: of each layer, for each distance, two decompositions, of size
C K^2 + 1 and of its outputs, which grow with the cube of that size. Memory: the roots of all victims, 46 MB each on `small`, by
their shapes 1.5 GB on `ddpm-cifar10` and 2.6 GB on `wide-128`; it is not predicted.
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
from benchmark.attacks._whitening import NothingTold, whitened_distance
from benchmark.base.ranges import LARGEST, Count, Positive, Range
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.defense_aware import COMPARISON_PARAMETERS
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import flat, granted
from benchmark.matching.search import Solution
from benchmark.plugins import MatchingAttack
from benchmark.types import Capability, Observation, Reconstruction

SPREADS = (1.0, 0.5, 0.5, 0.25)
"""How strong the fields of the guesses are in the first stages, as a share of a photograph's contrast; then as the last."""


@dataclass(frozen=True, kw_only=True)
class Whitened(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, guesses included.
        stage: evaluations of the first stage, guesses included.
        damping: added to each covariance, as a share of its largest eigenvalue.
        guesses: images for which a stage's distance is made; fewer where they would take most of the budget. A later stage
            without room for all is not begun.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = COMPARISON_PARAMETERS | {"least_timestep"}

    evaluations: Annotated[int, Range(3, LARGEST)] = 800
    stage: Count = 50
    damping: Positive = 1e-4
    guesses: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage < self.guesses + 2:
            raise ValueError(f"stage must be at least {self.guesses + 2}, two more than guesses, not {self.stage}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda told: self._search(told, generator))

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        victims = [_Victim(seen, Solution({"x_0": flat(seen)}, math.inf, 0)) for seen in observations]
        for number, spread in enumerate(chain(SPREADS, repeat(SPREADS[-1]))):
            if not self._stage(victims, self.stage << max(0, number - 1), spread, generator):
                break
        return [victim.reconstruction() for victim in victims]

    def _stage(self, victims: Sequence[_Victim], length: int, spread: float, generator: torch.Generator) -> bool:
        """Whether there was anything left to search. What a stage's distances hold is gone when it returns."""
        tasks = [self._task(victim, length, spread, generator) for victim in victims]
        going = [(victim, task) for victim, task in zip(victims, tasks, strict=True) if task]
        solutions = match([task for _, task in going], granted, squared_distance, lbfgs)  # each task has its own distance
        for (victim, _), solution in zip(going, solutions, strict=True):
            victim.take(solution)
        return bool(going)

    def _task(self, victim: _Victim, length: int, spread: float, generator: torch.Generator) -> Task | None:
        """A victim's search of one stage, its guesses paid for; None where it has ended, here or before, or its budget has.

        A search needs two evaluations: the first is that of its start.
        """
        size, left = min(self.guesses, self.evaluations // 2), self.evaluations - victim.spent
        if victim.ended or left < size + 2:
            return None
        x_0 = victim.found.variables["x_0"]
        guesses = x_0 + spread * fields((size, *x_0.shape), generator).to(x_0)
        victim.spent += size
        try:
            distance = whitened_distance(victim.seen, guesses, self.damping)
        except NothingTold as reason:
            victim.ended = str(reason)
            return None
        return Task(victim.seen, {"x_0": x_0}, min(length, left) - size, distance)


@dataclass(eq=False)
class _Victim:
    """Where one victim's search stands.

    Attributes:
        seen: the observation.
        found: what the last finished stage came to, at first the flat image.
        spent: evaluations so far.
        ended: why there is no further stage, though the budget has room.
    """

    seen: Observation
    found: Solution
    spent: int = 0
    ended: str | None = None

    def take(self, solution: Solution) -> None:
        """Put what a stage came to in the place of what it began with; where it diverged, that stays, as the end."""
        self.spent += solution.evaluations
        if solution.diverged:
            self.ended = solution.diverged
        else:
            self.found = solution

    def reconstruction(self) -> Reconstruction:
        """The images of the last finished stage; where there is none, they mean nothing."""
        rebuilt = dataclasses.replace(self.found, evaluations=self.spent).reconstruction()
        if self.found.loss == math.inf:
            return dataclasses.replace(rebuilt, diverged=self.ended)
        return dataclasses.replace(rebuilt, note=f"ended early: {self.ended}" if self.ended else "")
