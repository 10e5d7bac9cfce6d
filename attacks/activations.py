"""Activations read in closed form, the noisy image behind them, then the residual: for private noise and timesteps.

Source: ours

Related work, according to the abstracts: R-GAP (arXiv 2010.07733) and R-CONV (arXiv 2406.04227) solve for the inputs of
layers. DAGER (arXiv 2405.15586) and TIGER (arXiv 2606.18312) use the span of a gradient's rows to find text.

1. A private timestep is read in closed form (`benchmark.closed_form.timesteps`). If that is refused, nothing is reconstructed.
2. With one image, the attack reads the input of the first convolution of the forward pass whose output has no more positions
   than channels, if there is one. This is a closed form too (`benchmark.closed_form.activations`).
3. L-BFGS searches the images by their activations in the encoder (`benchmark.attacks._inversion`). The cost is the angle to
   the input from step 2, plus the share of the rows of the weight gradients that the images' patches do not explain. If the
   noise is private, the search variables are noisy images that start at N(0, 1). It first uses the angle alone, since the rows
   carry more information but mislead far from the truth. If the noise is granted, they are clean images that start at the mean
   colour of public images.
4. From there L-BFGS minimises the squared distance over x_t and the residual (`benchmark.attacks._residual`), or over the
   images if the noise is granted. The distance is adapted to the defense as in `residual`.

If the update is lossy (`benchmark.closed_form.losses`: pruning, rounding, noise, one step of Adam, a rounded message), steps 2
and 3 use restored gradients only (`benchmark.closed_form.restoration`). If none can be restored, or every convolution has too
many positions, step 4 has the whole budget. If step 3 does not converge, step 4 spends the rest of the budget from the start of
`residual`.

After several local steps the rows belong to several gradients at weights that drift, but step 3 treats them as one gradient.
The truth is then not where its cost is zero, and step 4 has to correct for that.

Shapes: images (B, C, H, W), unbounded. Cost: an evaluation of step 3 is one pass forward and back through the encoder, with a
Gram matrix of all patches for each convolution in float64. It counts as much as an evaluation of step 4, which is a double
backward through the network. Not counted: a singular value decomposition of each gradient, and up to 2,000 steps of conjugate
gradients to read an input. These work on matrices (N, N), where N is the number of positions of the output (measured on a busy
core: 1 s for 64 positions, 30 to 50 s for 256).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from benchmark.attacks._inversion import Inversion, Readout, legible, read_update
from benchmark.attacks._residual import ENOUGH_EVALUATIONS, default_start, search
from benchmark.base.ranges import MAX_NUMBER, InnerShare, Positive, Range
from benchmark.closed_form.losses import RESTORATION_PARAMETERS
from benchmark.closed_form.sites import sites_of_each
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.diffusion.landmarks import landmarks
from benchmark.matching.defense_aware import DISTANCE_PARAMETERS
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import gaussian_start
from benchmark.matching.search import Searches, Solution
from benchmark.outlook import (
    MAX_BATCH,
    Diagnosis,
    Outlook,
    Prediction,
    count,
    of_adaptive_search,
    of_restored_search,
    refusal,
    unknown,
)
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction

CONVERGED_SHARE = 0.02
"""Step 3 has converged if less than this share of the rows lies outside the images' patches."""

GRANTED_NOISE, PRIVATE_NOISE = 100, 300
"""Evaluations that are enough for up to `MAX_BATCH` images with granted noise, and for one image with private noise.

In results/defenses and results/attacks/limits these reach 30 dB. Several images with private noise do not.
"""

MAX_ERROR = CONVERGED_SHARE / 2
"""Largest squared error of a restored gradient, as a share of its square: step 3 still converges at the truth."""


@dataclass(frozen=True, kw_only=True)
class Activations(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, both searches together.
        inversion_share: share of the budget for step 3.
        angle_share: share of step 3's budget that is spent on the angle alone.
        span_weight: weight of the rows relative to the angle.
        residual_scale: how far the residual moves before x_t does. It is large because x_t is nearly known in step 4.
    """

    adapts_to: ClassVar[frozenset[str]] = DISTANCE_PARAMETERS | RESTORATION_PARAMETERS | {"least_timestep"}

    evaluations: Annotated[int, Range(3, MAX_NUMBER)] = 1000
    inversion_share: InnerShare = 0.5
    angle_share: InnerShare = 0.2
    span_weight: Positive = 10.0
    residual_scale: Positive = 30.0

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._attack(known, generator), adaptive=True)

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        if refused := refusal(diagnosis.adapted):
            return refused
        if not diagnosis.informative:
            return of_adaptive_search(diagnosis, self.evaluations, ENOUGH_EVALUATIONS, success_db)
        fixed = diagnosis.noise_granted or (diagnosis.images == 1 and bool(diagnosis.complete))
        too_few = not fixed and diagnosis.too_few(self.evaluations)
        if diagnosis.disturbed:
            search = of_adaptive_search if too_few else of_restored_search
            return search(diagnosis, self.evaluations - self._step_3_budget, ENOUGH_EVALUATIONS, success_db)
        images, needed = count(diagnosis.images), GRANTED_NOISE if diagnosis.noise_granted else PRIVATE_NOISE
        if diagnosis.images > MAX_BATCH:
            return unknown(f"{images} are searched together, and published searches are of up to {MAX_BATCH}")
        if too_few:
            return Outlook(Prediction.NOT_RECOVERED, "with private noise no layer fixes the images, and the budget is small")
        if not fixed:
            return unknown("with private noise no layer's input is read, so budget and start decide")
        if self.evaluations < needed:
            return unknown(f"{self.evaluations} evaluations may be too few for {images}")
        return Outlook(
            Prediction.RECOVERED, f"the rows of the encoder's gradients restrict {images}, and nothing disturbs them"
        )

    @property
    def _step_3_budget(self) -> int:
        return min(max(2, round(self.inversion_share * self.evaluations)), self.evaluations - 1)

    def _attack(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        network_sites = sites_of_each(observations)
        readouts = [
            read_update(legible(observation, of_network, MAX_ERROR), of_network)
            for observation, of_network in zip(observations, network_sites, strict=True)
        ]
        groups: dict[object, list[int]] = {}
        for place, (observation, readout) in enumerate(zip(observations, readouts, strict=True)):
            kind = (id(observation.network), observation.batch_shape, observation.noise is None, readout.kind)
            groups.setdefault(kind, []).append(place)
        starts: dict[int, _Start] = {}
        for places in groups.values():
            found = self._step_3([observations[i] for i in places], [readouts[i] for i in places], generator)
            starts.update(zip(places, found, strict=True))
        return self._step_4(observations, [starts[place] for place in range(len(observations))])

    def _step_3(
        self, observations: Sequence[Observation], readouts: Sequence[Readout], generator: torch.Generator
    ) -> list[_Start]:
        """Run step 3 for victims whose readouts are of one kind."""
        default_starts = [default_start(observation, generator) for observation in observations]
        if not readouts[0].spans:
            return [_Start(start, 0, "") for start in default_starts]
        budget = self._step_3_budget
        x, spent = torch.stack(default_starts).flatten(1), [0] * len(default_starts)
        if observations[0].noise is None and readouts[0].site:
            random_starts = torch.stack([gaussian_start(observation, generator) for observation in observations]).flatten(1)
            angle_budget = min(max(1, round(self.angle_share * budget)), budget - 1)
            searches = _invert(Inversion(observations, readouts, 0.0), random_starts, [angle_budget] * len(random_starts))
            x, spent = searches.best, searches.spent
        budgets = [budget - before for before in spent]
        searches = _invert(Inversion(observations, readouts, self.span_weight), x, budgets)
        inverted = f"the input of {readouts[0].site.name}" if readouts[0].site else f"{len(readouts[0].spans)} spans"
        return [
            _Start(
                best.view_as(start) if loss < CONVERGED_SHARE * self.span_weight else start,
                before + own,
                f"inverted {inverted}" if loss < CONVERGED_SHARE * self.span_weight else "",
            )
            for start, best, loss, before, own in zip(
                default_starts, searches.best, searches.loss, spent, searches.spent, strict=True
            )
        ]

    def _step_4(self, observations: Sequence[Observation], starts: Sequence[_Start]) -> list[Reconstruction]:
        """Run step 4 for inverted and for other victims; each group has its own unit of the residual."""
        rebuilt: dict[int, Reconstruction] = {}
        for scale, inverted in ((self.residual_scale, True), (1.0, False)):
            places = [place for place, start in enumerate(starts) if bool(start.note) == inverted]
            budgets = [self.evaluations - starts[place].spent for place in places]
            found = search([observations[i] for i in places], [starts[i].x for i in places], budgets, scale)
            rebuilt.update(
                (place, _reconstruction(observations[place], solution, starts[place]))
                for place, solution in zip(places, found, strict=True)
            )
        return [rebuilt[place] for place in range(len(observations))]


@dataclass(frozen=True, eq=False)
class _Start:
    """The start of step 4: images, evaluations spent so far, and a note on what was inverted, empty if that failed."""

    x: Tensor
    spent: int
    note: str


def _invert(inversion: Inversion, start: Tensor, budgets: Sequence[int]) -> Searches:
    searches = Searches(inversion, start, budgets, backend="inversion")
    lbfgs(searches)
    return searches


def _reconstruction(observation: Observation, solution: Solution, start: _Start) -> Reconstruction:
    rebuilt = solution.reconstruction()
    unknown = "" if landmarks(observation.network) else ": the network does not say which layers its encoder has"
    return dataclasses.replace(
        rebuilt, evaluations=start.spent + rebuilt.evaluations, note=start.note or f"nothing could be inverted{unknown}"
    )
