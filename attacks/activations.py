"""Activations read in closed form, the noisy image behind them, then the residual: what is private costs little.

Source: ours; no paper is known to us

1. A private timestep is read in closed form (`benchmark.closed_form.timesteps`); where that is refused, nothing is rebuilt.
2. The input of the first convolution on the network's way whose output has no more positions than channels is read in closed
   form, with the spans of the patches of such convolutions before it (`benchmark.closed_form.activations`).
3. The noisy image x_t is searched by what the network's first layers make of it (`benchmark.closed_form.inversion`): L-BFGS
   from N(0, 1), first on the angle to the activation alone, then on the spans too, which tell more but mislead from afar.
4. From there L-BFGS on the squared distance over x_t and the residual (`benchmark.matching.residual`), or over the image where
   the noise is granted.

Nothing can be read of a batch, nor from an update with noise on it or coordinates set to zero: there all of the budget goes to
step 4, from the start of `residual`.

Shapes: images (B, C, H, W), unbounded. Cost: a reading solves for an (N, N) matrix, N the positions of the output; an
evaluation of step 3 is one pass through the first layers and back, of step 4 one double backward through the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.closed_form.inversion import Inversion, Readout, read, sites
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import gaussian
from benchmark.matching.residual import noisy_start, search
from benchmark.matching.search import Searches, Solution
from benchmark.plugins import Attack
from benchmark.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class Activations(Attack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, both searches together.
        inversion_share: share of the budget for the noisy image.
        angle_share: share of that before the spans count.
        span_weight: weight of the spans against the angle.
        residual_scale: how far the residual moves before x_t does; large, since x_t is nearly known by then.
    """

    evaluations: int = 1000
    inversion_share: float = 0.5
    angle_share: float = 0.25
    span_weight: float = 10.0
    residual_scale: float = 30.0

    def __post_init__(self) -> None:
        if self.evaluations < 3:
            raise ValueError(f"evaluations must be at least 3, not {self.evaluations}")
        for name in ("inversion_share", "angle_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name):g}")
        for name in ("span_weight", "residual_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name):g}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda told: self._attack(told, generator))

    def _attack(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        passed = {id(seen.network): sites(seen.network, seen.image_shape) for seen in observations}
        readouts = [read(seen, passed[id(seen.network)]) for seen in observations]
        groups: dict[object, list[int]] = {}
        for place, readout in enumerate(readouts):
            groups.setdefault(readout and (readout.site, *readout.spans), []).append(place)
        rebuilt: dict[int, Reconstruction] = {}
        for places in groups.values():
            group = [observations[place] for place in places]
            held = [readout for place in places if (readout := readouts[place])]
            found = self._from_activations(group, held, generator) if held else self._from_noise(group, generator)
            rebuilt.update(zip(places, found, strict=True))
        return [rebuilt[place] for place in range(len(observations))]

    def _from_noise(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        starts = [noisy_start(seen, generator) for seen in observations]
        found = search(observations, starts, [self.evaluations] * len(starts))
        return [dataclasses.replace(each.reconstruction(), note="no activation could be read") for each in found]

    def _from_activations(
        self, observations: Sequence[Observation], readouts: Sequence[Readout], generator: torch.Generator
    ) -> list[Reconstruction]:
        budget = min(max(2, round(self.inversion_share * self.evaluations)), self.evaluations - 1)
        angle = min(max(1, round(self.angle_share * budget)), budget - 1)
        start = torch.stack([gaussian(seen, generator).flatten() for seen in observations])
        near = self._inverted(observations, readouts, 0, start, angle)
        nearer = self._inverted(observations, readouts, self.span_weight, near.best, budget - angle)
        spent = [sum(both) for both in zip(near.spent, nearer.spent, strict=True)]
        x_t = [best.view(seen.batch_shape) for best, seen in zip(nearer.best, observations, strict=True)]
        found = search(observations, x_t, [self.evaluations - before for before in spent], self.residual_scale)
        return [_rebuilt(solution, before, readout) for solution, before, readout in zip(found, spent, readouts, strict=True)]

    def _inverted(
        self, observations: Sequence[Observation], readouts: Sequence[Readout], weight: float, start: Tensor, evaluations: int
    ) -> Searches:
        searches = Searches(Inversion(observations, readouts, weight), start, [evaluations] * len(start), backend="trunk")
        lbfgs(searches)
        return searches


def _rebuilt(solution: Solution, before: int, readout: Readout) -> Reconstruction:
    rebuilt = solution.reconstruction()
    note = f"read the input of {readout.site.name}"
    return dataclasses.replace(rebuilt, evaluations=before + rebuilt.evaluations, note=note)
