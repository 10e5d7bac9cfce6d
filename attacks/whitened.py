"""L-BFGS on whitened gradients, whitened anew as the images get better. For large images.

Source: ours

Each layer's difference of gradients is whitened by the covariances of its patches and of what flows back to them, as they are
for the images found so far (`benchmark.matching.whitening`, which says what it is meant for).

The images start from the mean colour of public ones. A stage is L-BFGS on the distance that was made where it begins. Stages
are as long as all before them together, but for the first, of `shortest` evaluations: the distance changes less and less. A
search whose stage comes down no more ends. What a stage leaves of its share, where L-BFGS ends before it, is not spent.

Stages and damping were chosen on four crops of three photographs that no table shows (`china` and `flower` of scikit-learn,
`grace_hopper` of matplotlib), at 64x64, out of about 25 settings, not all of them tried on all four. With a damping of 0.0001
one of them was at its floor after 350 evaluations. At 128x128 smaller may be better: after 225 evaluations one crop, `china`,
stood at 10.2 dB with the default, which was not run on, and at 13.8 with 0.0001, which came to 40.1 after 550.

The distance is adapted to pruning and clips. Noise on the update and rounding are not: whitening makes more of them, as it does
of everything small. After local steps in known order the covariances are those of one batch, and the search is exact.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise. The loss that a row shows is relative to that at the beginning of the last stage.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation; a stage's covariances
count as one evaluation: passes forward and back, and of each layer Gram matrices and a decomposition of size C K^2 + 1, which
grows with the cube of that size. Memory: the roots of all victims, 46 MB each on `small`, by their
shapes 1.5 GB on `ddpm-cifar10` and 2.6 GB on `wide-128`; it is not predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.engine import TAKEN, Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import flat, granted
from benchmark.matching.search import Solution
from benchmark.matching.whitening import NothingTold, whitened_distance
from benchmark.plugins import Attack
from benchmark.types import Capability, Observation, Reconstruction

COMES_DOWN = 0.999
"""A stage starts at 1; one that ends above this was at its end."""


@dataclass(frozen=True, kw_only=True)
class Whitened(Attack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, all stages together.
        shortest: evaluations of the first stage.
        damping: added to each covariance, as a share of its largest eigenvalue.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = TAKEN | {"kept_share", "clip_norm", "update_clip_norm", "least_timestep"}

    evaluations: int = 1000
    shortest: int = 50
    damping: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in (("evaluations", 2), ("shortest", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`; draws nothing."""
        return with_timesteps(observations, self._search)

    def _search(self, observations: Sequence[Observation]) -> list[Reconstruction]:
        found = [Solution({"x_0": flat(seen)}, 1.0, 0) for seen in observations]
        going, left = list(range(len(found))), self.evaluations
        while going and left > 1:
            stage = min(left, max(self.shortest, self.evaluations - left))
            tasks: dict[int, Task] = {}
            for place in going:
                try:
                    tasks[place] = self._stage(observations[place], found[place], stage)
                except NothingTold as reason:
                    found[place] = _ended(found[place], 1, str(reason))
            solutions = match(list(tasks.values()), granted, squared_distance, lbfgs)
            going = []
            for place, solution in zip(tasks, solutions, strict=True):
                spent = dataclasses.replace(solution, evaluations=solution.evaluations + 1)
                if solution.diverged:
                    found[place] = _ended(found[place], spent.evaluations, solution.diverged)
                    continue
                found[place] = spent.after(found[place])
                if solution.loss < COMES_DOWN:
                    going.append(place)
            left -= stage
        return [solution.reconstruction() for solution in found]

    def _stage(self, seen: Observation, before: Solution, evaluations: int) -> Task:
        """A search from where the one before ended; the distance counts as one of its evaluations."""
        own = whitened_distance(seen, before.variables["x_0"], self.damping)
        return Task(seen, before.variables, evaluations - 1, own)


def _ended(before: Solution, spent: int, reason: str) -> Solution:
    """What the stages before came to; the reason is why its images mean nothing where there were none."""
    evaluations = before.evaluations + spent
    return dataclasses.replace(before, evaluations=evaluations, diverged=None if before.evaluations else reason)
