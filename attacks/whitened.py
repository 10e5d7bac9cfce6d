"""L-BFGS on whitened gradients, whitened anew as the images get better. For large images.

Source: ours

Each layer's difference of gradients is whitened by the covariances of its patches and of what flows back to them
(`benchmark.matching.whitening`, which says what it is meant for), as they are for guesses at the images: what was found so far,
with random fields added (`benchmark.matching.fields`), weaker ones in later stages (`SPREADS`).

A stage is L-BFGS on the distance that was made where it begins, and as long as all of a search before it. The first is run
from the mean colour of public images and, with `restarts`, from some of its guesses, which are around it. Of a stage's searches
the half with the lower loss goes on, until one is left. A loss is relative to the mean over the guesses that its distance was
made for: those of the first stage are on one scale, later ones on scales of their own. Where the budget has no room for all
guesses and searches there are fewer.

Stages, fields and damping were chosen on four crops of three photographs that no table shows (`china` and `flower` of
scikit-learn, `grace_hopper` of matplotlib), at 64x64, out of about 50 settings, not all of them tried on all four; the length
of stages on two of them at 128x128, where stages of 50 evaluations each were run for no more than 150. Restarts were seen at
64x64 as the best of eight first stages from fields, which is the wrong one on one crop.

The distance is adapted to pruning and clips. Noise on the update and rounding are not: whitening makes more of them, as it does
of everything small. After local steps in known order the covariances are those of one batch, and the search is exact.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise. The loss that a row shows is relative to the mean of the last stage's guesses.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation; a stage's guesses count as
one evaluation each: two passes forward and back. Not counted: of each layer, for each distance, two decompositions, of size
C K^2 + 1 and of its outputs, which grow with the cube of that size. Memory: the roots of all victims, for up to half as many
searches as there are restarts: 46 MB each on `small`, by their shapes 1.5 GB on `ddpm-cifar10` and 2.6 GB on `wide-128`; it is
not predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import ClassVar

import torch

from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.engine import TAKEN, Task, match
from benchmark.matching.fields import fields
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import flat, granted
from benchmark.matching.search import Solution
from benchmark.matching.whitening import NothingTold, whitened_distance
from benchmark.plugins import Attack
from benchmark.types import Capability, Observation, Reconstruction

SPREADS = (1.0, 0.5, 0.5, 0.25)
"""How strong the fields of the guesses are in the first stages, as a share of a photograph's contrast; then as the last."""


@dataclass(frozen=True, kw_only=True)
class Whitened(Attack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, all stages and restarts together.
        stage: evaluations of one search in the first stage, the guesses of its distance among them.
        damping: added to each covariance, as a share of its largest eigenvalue.
        guesses: images for which a stage's distance is made.
        restarts: searches in the first stage.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = TAKEN | {"kept_share", "clip_norm", "update_clip_norm", "least_timestep"}

    evaluations: int = 1000
    stage: int = 50
    damping: float = 1e-4
    guesses: int = 8
    restarts: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.restarts <= self.guesses:
            raise ValueError(f"restarts must be from 1 to guesses ({self.guesses}), not {self.restarts}")
        for name, least in (("stage", self.guesses + 1), ("evaluations", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda told: self._search(told, generator))

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        victims = [_Victim(seen, [Solution({"x_0": flat(seen)}, math.inf, 0)]) for seen in observations]
        for stage, spread in enumerate(chain(SPREADS, repeat(SPREADS[-1]))):
            if not self._stage(victims, stage, spread, generator):
                break
        return [victim.reconstruction() for victim in victims]

    def _stage(self, victims: Sequence[_Victim], stage: int, spread: float, generator: torch.Generator) -> bool:
        """Whether there was anything left to search. What a stage's distances hold is gone when it returns."""
        length, starts = self.stage << max(0, stage - 1), 0 if stage else self.restarts
        tasks = [self._tasks(victim, length, spread, starts, generator) for victim in victims]
        solutions = iter(match([task for own in tasks for task in own], granted, squared_distance, lbfgs))
        for victim, own in zip(victims, tasks, strict=True):
            if own:
                victim.rank(list(islice(solutions, len(own))), max(1, self.restarts >> (stage + 1)))
        return any(tasks)

    def _tasks(self, victim: _Victim, length: int, spread: float, starts: int, generator: torch.Generator) -> list[Task]:
        """A victim's searches of one stage, none at the end: one from each image that is left; of the first stage, `starts`."""
        left, size = self.evaluations - victim.spent, self.guesses
        if starts:
            size = min(size, left - 1)
            starts = min(starts, size, left - size)
            budget = min(length - size, (left - size) // starts)
        elif victim.ended or left <= size:
            return []
        else:
            victim.rivals = victim.rivals[: left // (size + 1)]
            budget = min(length, left // len(victim.rivals)) - size
        tasks: list[Task] = []
        lost = None
        for rival in victim.rivals:
            x_0 = rival.variables["x_0"]
            guesses = x_0 + spread * fields((size, *x_0.shape), generator).to(x_0)
            victim.spent += size
            try:
                own = whitened_distance(victim.seen, guesses, self.damping)
            except NothingTold as reason:
                lost = str(reason)
                continue
            tasks += [Task(victim.seen, {"x_0": start}, budget, own) for start in (x_0, *guesses[: max(0, starts - 1)])]
        victim.ended = None if tasks else lost
        return tasks


@dataclass(eq=False)
class _Victim:
    """Where one victim's searches stand.

    Attributes:
        seen: the observation.
        rivals: what is left of its searches, the lowest loss first.
        spent: evaluations of all of them.
        ended: why there is no further stage.
    """

    seen: Observation
    rivals: list[Solution]
    spent: int = 0
    ended: str | None = None

    def rank(self, solutions: Sequence[Solution], kept: int) -> None:
        """Put what a stage came to in the place of what it began with; where all of it diverged, that stays, as the end."""
        self.spent += sum(solution.evaluations for solution in solutions)
        sound = sorted((solution for solution in solutions if not solution.diverged), key=lambda solution: solution.loss)
        if sound:
            self.rivals = sound[:kept]
        else:
            self.ended = solutions[0].diverged

    def reconstruction(self) -> Reconstruction:
        """The images with the lowest loss; where no stage was finished, they mean nothing."""
        best = self.rivals[0]
        lost = self.ended if best.loss == math.inf else None
        return dataclasses.replace(best, evaluations=self.spent, diverged=lost).reconstruction()
