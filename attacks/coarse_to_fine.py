"""A search that grows: a handful of pixels first, then twice as many a side, up to the image itself. For large images.

Source: ours

Meant for images whose layers have too many positions for `activations`. Matching all pixels at once from a flat colour, their
number grows with the image's area and the gradient's length does not. So few pixels are searched first, enlarged bicubically to
the image's size for the network, and each level starts where the last one ended:

1. `coarsest` pixels a side, from `starts` greys evenly spread over the range of images.
2. Twice as many a side at each level; the half with the lower matching loss goes on until one is left (successive halving,
   Jamieson and Talwalkar 2016, arXiv 1502.07943).
3. The image itself.

Each search is L-BFGS. Before the last level a cosine compares every layer's gradient with its own, since what the pixels cannot
show yet changes the norms of gradients more than their directions; on the last level the squared distance goes on from there,
as it is the sharper one near the truth. That is adapted to the defense as in `residual`, the cosine to pruning and clips alone.

Where the budget has fewer evaluations for a level than starts, there are fewer starts. What it is worth is not shown yet: on
one photograph of 128x128 and the preset `small` it did not arrive.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise: where it was private, searching it too could explain what the pixels cannot show, which was not tried.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network at the image's size per evaluation, on
every level.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.adapted import USED, directions, distance, match_adapted
from benchmark.matching.engine import TAKEN, Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import Distance
from benchmark.matching.problem import CleanGuess, Guess, Stack
from benchmark.matching.search import Solution
from benchmark.plugins import Attack
from benchmark.types import Capability, Observation, PublicParameters, Reconstruction


@dataclass(frozen=True, kw_only=True)
class CoarseToFine(Attack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, all levels and starts together.
        coarse_share: share of the budget for the levels before the last, which get equal parts of it.
        coarsest: pixels of the first level along the image's shorter side.
        starts: greys that the first level starts from.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    adapts_to: ClassVar[frozenset[str]] = USED | TAKEN | {"least_timestep"}

    evaluations: int = 1000
    coarse_share: float = 0.5
    coarsest: int = 2
    starts: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.coarse_share < 1:
            raise ValueError(f"coarse_share must be between 0 and 1, not {self.coarse_share:g}")
        for name in ("evaluations", "coarsest", "starts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`; draws nothing."""
        return with_timesteps(observations, self._search)

    def _search(self, observations: Sequence[Observation]) -> list[Reconstruction]:
        *coarse, full = _levels(observations[0].image_shape, self.coarsest)
        share = int(self.coarse_share * self.evaluations / max(1, len(coarse)))
        starts = [_greys(seen, (coarse or [full])[0], min(self.starts, max(1, share))) for seen in observations]
        budgets = [self.evaluations] * len(observations)
        for level in coarse:
            found = _matched(observations, starts, level, [share // len(own) for own in starts], directions)
            budgets = [left - sum(one.evaluations for one in own) for left, own in zip(budgets, found, strict=True)]
            starts = [_better_half(own) for own in found]
        last = _matched(observations, [own[:1] for own in starts], full, budgets, distance)
        spent = [self.evaluations - left for left in budgets]
        return [
            dataclasses.replace(own.reconstruction(), evaluations=before + own.evaluations)
            for (own,), before in zip(last, spent, strict=True)
        ]


def _better_half(found: Sequence[Solution]) -> list[Tensor]:
    """The images, best first, of the half of the solutions that match best."""
    best = sorted(found, key=lambda solution: solution.loss)
    return [solution.variables["x_0"] for solution in best[: math.ceil(len(best) / 2)]]


def _levels(image_shape: Sequence[int], coarsest: int) -> list[tuple[int, int]]:
    """Heights and widths of the levels, the image's own last: the shorter side is `coarsest` and then twice as long each."""
    _, height, width = image_shape
    shorter = min(height, width)
    sides = itertools.takewhile(lambda side: side < shorter, (coarsest * 2**level for level in itertools.count()))
    return [*((round(height * side / shorter), round(width * side / shorter)) for side in sides), (height, width)]


def _greys(seen: Observation, level: tuple[int, int], count: int) -> list[Tensor]:
    """`count` starts (B, C, *level) of one grey each, evenly spread within [-1, 1]."""
    levels = torch.linspace(-1, 1, count + 2)[1:-1].tolist()
    return [torch.full((*seen.batch_shape[:2], *level), grey, device=seen.network.device) for grey in levels]


def _matched(
    observations: Sequence[Observation],
    starts: Sequence[Sequence[Tensor]],
    level: tuple[int, int],
    budgets: Sequence[int],
    fit: Callable[[PublicParameters], Distance],
) -> list[list[Solution]]:
    """Of each victim its starts (B, C, h, w) searched at one level, with the victim's budget each."""
    tasks = [
        Task(seen, {"x_0": _resized(x, level)}, budget)
        for seen, own, budget in zip(observations, starts, budgets, strict=True)
        for x in own
    ]
    found = iter(match_adapted(tasks, _enlarged, fit, lbfgs))
    return [list(itertools.islice(found, len(own))) for own in starts]


def _enlarged(variables: Mapping[str, Tensor], known: Stack) -> Guess:
    """The guess at images of the client's size behind images (P, B, C, h, w) of one level."""
    assert known.timesteps is not None and known.noise is not None
    x, noise = variables["x_0"], known.noise
    enlarged = _resized(x.flatten(0, 1), (noise.shape[-2], noise.shape[-1]))
    return CleanGuess(enlarged.view_as(noise), known.timesteps, noise)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, *size), bicubic, of images (N, C, h, w)."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bicubic")
