"""A search that grows: a handful of pixels first, then twice as many a side, up to the image itself. For large images.

Source: ours

From a flat colour, matching all pixels of a large image at once ends far from it: their number grows with the area, the
gradient's length does not. From a blurred copy of the image it arrives. So few pixels are searched first, enlarged bicubically
to the image's size for the network, and each level starts where the last one ended:

1. `coarsest` pixels a side, from `starts` greys evenly spread over the range of images.
2. Twice as many a side at each level; the half with the lower matching loss goes on until one is left (successive halving,
   Jamieson and Talwalkar 2016, arXiv 1502.07943).
3. The image itself.

Each search is L-BFGS. Before the last level a cosine compares every layer's gradient with its own, since what the pixels cannot
show yet changes the norms of gradients more than their directions; on the last level the squared distance goes on from there,
as it is the sharper one near the truth. Both are adapted to the defense as in `residual`.

A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt. Needs
the noise: where it was private, searching it too would explain what the pixels cannot show.

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
        left = [_greys(seen, (coarse or [full])[0], min(self.starts, max(1, share))) for seen in observations]
        spent = [0] * len(observations)
        for level in coarse:
            found = _matched(observations, left, level, [share // len(starts) for starts in left], directions)
            spent = [before + sum(one.evaluations for one in own) for before, own in zip(spent, found, strict=True)]
            left = [[one.variables["x_0"] for one in own[: math.ceil(len(own) / 2)]] for own in found]
        budgets = [self.evaluations - before for before in spent]
        last = _matched(observations, [starts[:1] for starts in left], full, budgets, distance)
        return [
            dataclasses.replace(own.reconstruction(), evaluations=before + own.evaluations)
            for (own,), before in zip(last, spent, strict=True)
        ]


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
    """Of each victim its starts searched at one level, with the same budget each; those that match best come first."""
    tasks = [
        Task(seen, {"x_0": _resized(x, level)}, budget)
        for seen, own, budget in zip(observations, starts, budgets, strict=True)
        for x in own
    ]
    found = iter(match_adapted(tasks, _enlarged, fit, lbfgs))
    return [sorted(itertools.islice(found, len(own)), key=lambda one: one.loss) for own in starts]


def _enlarged(variables: Mapping[str, Tensor], known: Stack) -> Guess:
    """The guess at images of the client's size behind images (P, B, C, h, w) of one level."""
    assert known.timesteps is not None and known.noise is not None
    x, noise = variables["x_0"], known.noise
    enlarged = _resized(x.flatten(0, 1), (noise.shape[-2], noise.shape[-1]))
    return CleanGuess(enlarged.view_as(noise), known.timesteps, noise)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, *size), bicubic, of images (N, C, h, w)."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bicubic")
