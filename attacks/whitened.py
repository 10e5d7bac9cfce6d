"""L-BFGS on whitened gradients, whitened anew as the images get better. For large images.

Source: ours

Each layer's difference of gradients is whitened by the covariances of its patches and of what flows back to them
(`benchmark.matching.whitening`, which says what it is meant for), as they are for guesses at the images: what was found so far,
with random fields added (`benchmark.matching.fields`). The fields get weaker from stage to stage (`SPREADS`).

The images start from the first of the guesses around the mean colour of public images. A stage is L-BFGS on the distance that
was made where it begins. A search ends with its budget, or with a stage that finds nothing better than where it began.

The distance is adapted to pruning and clips. Noise on the update and rounding are not: whitening makes more of them, as it does
of everything small. After local steps in known order the covariances are those of one batch, and the search is exact.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise. The loss that a row shows is relative to the mean of the last stage's guesses.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation; a stage's guesses count as
one evaluation each: two passes forward and back. Not counted: of each layer a decomposition of size C K^2 + 1, which grows with
the cube of that size. Memory: the roots of all victims, 46 MB each on `small`, by their shapes 1.5 GB on `ddpm-cifar10` and
2.6 GB on `wide-128`; it is not predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
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
        evaluations: budget for one victim, all stages together.
        stage: evaluations of one stage, its guesses among them.
        damping: added to each covariance, as a share of its largest eigenvalue.
        guesses: images for which a stage's distance is made.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = TAKEN | {"kept_share", "clip_norm", "update_clip_norm", "least_timestep"}

    evaluations: int = 1000
    stage: int = 50
    damping: float = 1e-4
    guesses: int = 8

    def __post_init__(self) -> None:
        if self.guesses < 1:
            raise ValueError(f"guesses must be at least 1, not {self.guesses}")
        for name in ("evaluations", "stage"):
            if getattr(self, name) <= self.guesses:
                raise ValueError(f"{name} must be above guesses ({self.guesses}), not {getattr(self, name)}")
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda told: self._search(told, generator))

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        found = [Solution({"x_0": flat(seen)}, 1.0, 0) for seen in observations]
        going = list(range(len(found)))
        for spread in chain(SPREADS, repeat(SPREADS[-1])):
            tasks: dict[int, Task] = {}
            for place in going:
                budget = min(self.stage, self.evaluations - found[place].evaluations) - self.guesses
                if budget < 1:
                    continue
                seen, x_0 = observations[place], found[place].variables["x_0"]
                guesses = x_0 + spread * fields((self.guesses, *x_0.shape), generator).to(x_0)
                start = x_0 if found[place].evaluations else guesses[0]
                try:
                    tasks[place] = Task(seen, {"x_0": start}, budget, whitened_distance(seen, guesses, self.damping))
                except NothingTold as reason:
                    found[place] = _ended(found[place], self.guesses, str(reason))
            if not tasks:
                return [solution.reconstruction() for solution in found]
            going = []
            solutions = match(list(tasks.values()), granted, squared_distance, lbfgs)
            for (place, task), solution in zip(tasks.items(), solutions, strict=True):
                spent = solution.evaluations + self.guesses
                if solution.diverged:
                    found[place] = _ended(found[place], spent, solution.diverged)
                    continue
                found[place] = dataclasses.replace(solution, evaluations=spent).after(found[place])
                if not torch.equal(solution.variables["x_0"], task.start["x_0"]):
                    going.append(place)
        raise AssertionError("stages without end")


def _ended(before: Solution, spent: int, reason: str) -> Solution:
    """What the stages before came to; the reason is why its images mean nothing where there were none."""
    evaluations = before.evaluations + spent
    return dataclasses.replace(before, evaluations=evaluations, diverged=None if before.evaluations else reason)
