"""Noisy images of a whole batch by the spans of wide layers, one at a time, then all residuals by linear algebra.

Source: ours

Related work, according to the abstracts: DAGER (arXiv 2405.15586) and TIGER (arXiv 2606.18312) use the span of a gradient's
rows to find text.

1. Private timesteps are read in closed form (`benchmark.closed_form.timesteps`). If that is refused, nothing is reconstructed.
2. The attack uses the convolutions of the encoder whose gradient rows span the patches of all N images: N h w <= O for an
   output of O channels and h x w positions.
3. L-BFGS searches each noisy image alone, at its own timestep, from N(0, 1). The cost is the share of its patches outside the
   spans (`benchmark.attacks._span_search`). A search may end at an image of another timestep. Its cost then stays high, and it
   is repeated from a new start. There it is first repelled from the images that have been found.
4. With all x_t and t known, the residuals solve a linear least-squares problem (`benchmark.attacks._linear_residual`). Images
   and noise follow from them.
5. The attack predicts the PSNR of each image. It adds three mean squared differences: to the images after half of the rounds
   of step 4, to the images after some more rounds with half of the parameters, and the one that the noisy images may still
   cause, judged by their last moves in step 3. An image that was not found spoils the linear problem of its whole batch, so
   nothing is accepted then.

If the defense states that it prunes, rounds or adds noise, steps 2 and 3 use restored gradients only
(`benchmark.closed_form.restoration`). The search of `residual`, from the noisy images found, replaces step 4, which needs every
coordinate of the update. Nothing is accepted.

If there is no such layer, or no image is found, the rest of the budget goes to the search of `residual`, which is adapted to
the defense.

If the noise is granted, step 3 searches clean images, and step 4 is not needed.

After several local steps, or with clients whose updates are summed, the N images are all images behind the update. After
several steps the weights drift, and both steps treat the update as one gradient, with an error of the order of the step size.

Shapes: images (N, C, H, W), unbounded. Cost: an evaluation of step 3 is one pass of all N images forward and back through the
encoder, and an evaluation of step 4 is one pass back and one derivative of it. Both use first derivatives only. Not counted: a
singular value decomposition of the gradient of each layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from benchmark.attacks._inversion import sites_of_each
from benchmark.attacks._kronecker import metric
from benchmark.attacks._linear_residual import LinearUpdate, solve
from benchmark.attacks._residual import default_start, search
from benchmark.attacks._span_search import SiteSpans, Sought, SpanSearch, complete_spans
from benchmark.base.ranges import Count, InnerShare
from benchmark.closed_form.losses import RESTORATION_PARAMETERS, measurements
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.chunks import threads_for
from benchmark.matching.defense_aware import DISTANCE_PARAMETERS
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import mean_colour_start
from benchmark.matching.search import Evaluate, Searches
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction

FOUND = 1e-3
"""An image is found if less than this share of its patches lies outside the spans."""

CONVERGED = 1e-4
"""The cost below which a found image may be accepted."""

CHECKING_ROUNDS = 20
"""Rounds of the check with half of the parameters."""

COPY_DISTANCE = 0.5
"""Two noisy images of one update are the same one if they differ by less than this share of their norm.

Different ones differ by more than their norm: their noise is independent.
"""

SAFETY = 10.0
"""The squared error of an image falls at least as fast as its cost, up to this factor: the last directions fall slowest."""

RESIDUAL_SCALE = 30.0
"""How far the residual moves before x_t does in the search from images that were found, as in `activations`."""

REPELLING_SITES = 3
"""The number of last layers by which a search is repelled from the images found."""


@dataclass(frozen=True, kw_only=True)
class Spans(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, steps 3 and 4 together.
        search_share: share of the budget for step 3 if the noise is private.
        exploration: evaluations of a search before it is judged.
    """

    adapts_to: ClassVar[frozenset[str]] = DISTANCE_PARAMETERS | RESTORATION_PARAMETERS | {"least_timestep"}

    evaluations: Count = 800
    search_share: InnerShare = 0.75
    exploration: Count = 150

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._attack(known, generator), adaptive=True)

    def _attack(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        spans = list(map(complete_spans, observations, sites_of_each(observations)))
        groups: dict[object, list[int]] = {}
        for place, observation in enumerate(observations):
            names = tuple(site.name for site in spans[place])
            lossy = bool(measurements(observation))
            kind = (id(observation.network), observation.batch_shape, observation.noise is None, lossy, names)
            groups.setdefault(kind, []).append(place)
        rebuilt: dict[int, Reconstruction] = {}
        for places in groups.values():
            some = [observations[place] for place in places]
            found = self._rebuild(some, [spans[place] for place in places], generator)
            rebuilt.update(zip(places, found, strict=True))
        return [rebuilt[place] for place in range(len(observations))]

    def _rebuild(
        self, observations: Sequence[Observation], spans: Sequence[SiteSpans], generator: torch.Generator
    ) -> list[Reconstruction]:
        """Rebuild the images behind updates of one kind."""
        granted_noise, lossy = observations[0].noise is not None, bool(measurements(observations[0]))
        if not spans[0]:
            starts = [default_start(observation, generator) for observation in observations]
            note = "no wide layer could be restored" if lossy else "no layer is wide enough"
            return self._match(observations, starts, [0] * len(observations), note)
        budget = max(1, round((1.0 if granted_noise and not lossy else self.search_share) * self.evaluations))
        found = _Search(observations, spans, budget, self.exploration).run(generator)
        rebuilt: dict[int, Reconstruction] = {}
        lost = [place for place, images in enumerate(found) if not images.any_found]
        if lost:
            some, spent = [observations[place] for place in lost], [found[place].spent for place in lost]
            starts = [default_start(observation, generator) for observation in some]
            matched = self._match(some, starts, spent, "no noisy image was found")
            rebuilt.update(zip(lost, matched, strict=True))
        for place in sorted(set(range(len(found))) - set(lost)):
            observation, images = observations[place], found[place]
            if lossy:
                (rebuilt[place],) = self._match([observation], [images.x], [images.spent], images.note, RESIDUAL_SCALE)
            elif granted_noise:
                rebuilt[place] = _reconstructed(images)
            else:
                rebuilt[place] = _solved(observation, images, self.evaluations - images.spent, generator)
        return [rebuilt[place] for place in range(len(found))]

    def _match(
        self, observations: Sequence[Observation], starts: Sequence[Tensor], spent: Sequence[int], note: str, scale: float = 1.0
    ) -> list[Reconstruction]:
        """Search all images together, as the attack `residual` does, with the rest of the budget. Nothing is accepted."""
        solutions = search(observations, starts, [self.evaluations - before for before in spent], scale)
        return [
            dataclasses.replace(
                solution.reconstruction(),
                evaluations=before + solution.evaluations,
                predicted_psnr=torch.zeros(observation.image_count),
                note=f"{note}: matched gradients",
            )
            for observation, solution, before in zip(observations, solutions, spent, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Found:
    """The images found behind one update.

    Attributes:
        x: (N, C, H, W) noisy images, or clean ones if the noise is granted.
        loss: (N,) shares of the patches outside the spans.
        error: (N,) estimated mean squared errors of x.
        spent: evaluations.
    """

    x: Tensor
    loss: Tensor
    error: Tensor
    spent: int

    def image_error(self, signal: Tensor) -> Tensor:
        """Return the mean squared error (N,) on [0, 1] images that the errors of x cause directly.

        `signal` is the scale of the image in x. An image whose cost did not fall below `CONVERGED` has the error 1.
        """
        return torch.where(self.loss < CONVERGED, self.error / (2 * signal).square(), 1.0)

    @property
    def any_found(self) -> bool:
        """Return whether at least one image was found."""
        return bool((self.loss < FOUND).any())

    @property
    def all_converged(self) -> bool:
        """Return whether all costs fell below `CONVERGED`."""
        return bool((self.loss < CONVERGED).all())

    @property
    def note(self) -> str:
        """Return a remark for the table."""
        found = int((self.loss < FOUND).sum())
        return f"found {found} of {len(self.loss)} noisy images, largest cost {float(self.loss.max()):.1e}"


class _Search:
    """Step 3 for P updates of one kind, with N images each."""

    def __init__(self, observations: Sequence[Observation], spans: Sequence[SiteSpans], budget: int, exploration: int) -> None:
        self.observations, self.spans, self.budget = observations, spans, budget
        self.exploration = min(exploration, max(1, budget // 2))
        self.images = observations[0].image_count
        self.sought = [
            Sought(update, int(t), None if observation.noise is None else observation.noise[image])
            for update, observation in enumerate(observations)
            for image, t in enumerate(_timesteps(observation).tolist())
        ]
        self.x = torch.stack([mean_colour_start(observation) for observation in observations]).flatten(0, 1).flatten(1)
        self.loss = [math.inf] * len(self.sought)
        self.spent = [0] * len(observations)  # passes of single images

    def run(self, generator: torch.Generator) -> list[_Found]:
        """Search until all images are found or the budget is spent, and spend the rest on all images."""
        self._explore(range(len(self.sought)), generator)
        while lost := self._lost():
            self._explore(lost, generator)
        error = self._refine().view(-1, self.images)
        shape = self.observations[0].batch_shape
        losses, x = torch.tensor(self.loss).to(error).view_as(error), self.x.view(-1, *shape)
        return [
            _Found(x[update], losses[update], error[update], math.ceil(spent / self.images))
            for update, spent in enumerate(self.spent)
        ]

    def _left(self, update: int) -> int:
        return self.budget * self.images - self.spent[update]

    def _lost(self) -> list[int]:
        """Return the images that are not found and whose update can afford another exploration of them all.

        Such an exploration costs twice as much as the first. As much as the first is kept for `_refine`.
        """
        lost = [row for row, loss in enumerate(self.loss) if not loss < FOUND]
        count = Counter(self.sought[row].update for row in lost)
        return [
            row
            for row in lost
            if self.exploration * (2 * count[self.sought[row].update] + self.images) <= self._left(self.sought[row].update)
        ]

    def _explore(self, rows: Sequence[int], generator: torch.Generator) -> None:
        """Search images from new starts, first repelled from the images found, then not."""
        start = torch.randn(len(rows), self.x.shape[1], generator=generator).to(self.x)
        budgets = [self.exploration] * len(rows)
        if repellers := self._repellers(rows):
            start = self._searched(
                SpanSearch(self.observations[0], self.spans, self._of(rows), repellers), start, budgets, rows
            ).best
        searches = self._searched(SpanSearch(self.observations[0], self.spans, self._of(rows)), start, budgets, rows)
        self._keep(rows, searches)
        self._drop_copies()

    def _drop_copies(self) -> None:
        for row in self._copies():
            self.loss[row] = math.inf

    def _copies(self) -> list[int]:
        """Return the images that are copies of an image of the same update with a lower cost."""
        found = [row for row, loss in enumerate(self.loss) if loss < FOUND]
        pairs = itertools.combinations(sorted(found, key=self.loss.__getitem__), 2)
        return [b for a, b in pairs if self.sought[a].update == self.sought[b].update and self._are_alike(a, b)]

    def _are_alike(self, a: int, b: int) -> bool:
        return bool((self.x[a] - self.x[b]).norm() < COPY_DISTANCE * self.x[a].norm())

    def _refine(self) -> Tensor:
        """Spend the rest of the budget on all images, and return the estimated mean squared errors of x."""
        rows, start = range(len(self.sought)), self.x.clone()
        budgets = [self._left(one.update) // self.images for one in self.sought]
        evaluate = SpanSearch(self.observations[0], self.spans, self.sought)
        searches = _WithHalfway(evaluate, start, budgets, backend="spans", share=1 / self.images)
        self._spend(evaluate, searches, rows)
        half, half_loss = searches.halfway, searches.halfway_loss
        self._keep(rows, searches)
        self._drop_copies()
        falls = torch.tensor([SAFETY * end / first for end, first in zip(self.loss, half_loss, strict=True)]).clamp(max=1)
        moved = (self.x - half).square().mean(1) * falls.to(half)
        return torch.where(torch.tensor(searches.spent, device=moved.device) > 1, moved, math.inf)

    def _repellers(self, rows: Sequence[int]) -> list[SiteSpans]:
        """Return the spans of the images found behind each update; empty before the first exploration."""
        updates = {self.sought[row].update for row in rows}
        found = {
            update: [i for i in range(len(self.loss)) if self.sought[i].update == update and self.loss[i] < FOUND]
            for update in updates
        }
        if not any(found.values()):
            return []
        evaluate = SpanSearch(self.observations[0], self.spans, self.sought)
        spans = [
            evaluate.patch_spans(self.x[found[update]], found[update], REPELLING_SITES) if found.get(update) else {}
            for update in range(len(self.observations))
        ]
        evaluate.close()
        return spans

    def _of(self, rows: Sequence[int]) -> list[Sought]:
        return [self.sought[row] for row in rows]

    def _searched(self, evaluate: SpanSearch, start: Tensor, budgets: Sequence[int], rows: Sequence[int]) -> Searches:
        searches = Searches(evaluate, start, budgets, backend="spans", share=1 / self.images)
        self._spend(evaluate, searches, rows)
        return searches

    def _spend(self, evaluate: SpanSearch, searches: Searches, rows: Sequence[int]) -> None:
        try:
            lbfgs(searches)
        finally:
            evaluate.close()
        for row, spent in zip(rows, searches.spent, strict=True):
            self.spent[self.sought[row].update] += spent

    def _keep(self, rows: Sequence[int], searches: Searches) -> None:
        for place, row in enumerate(rows):
            if searches.loss[place] < self.loss[row]:
                self.loss[row], self.x[row] = searches.loss[place], searches.best[place]


class _WithHalfway(Searches):
    """Searches that also keep the best point after half of the budget.

    Attributes:
        halfway: (P, n) these points; the start if a search ended before.
        halfway_loss: their costs, infinite at the start.
    """

    def __init__(self, evaluate: Evaluate, start: Tensor, budgets: Sequence[int], backend: str, share: float) -> None:
        super().__init__(evaluate, start, budgets, backend=backend, share=share)
        self.halfway, self.halfway_loss = start.clone(), [math.inf] * len(start)

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[list[float], Tensor]:
        """See `Searches.__call__`."""
        found = super().__call__(x, rows)
        for row in rows:
            if self.spent[row] in (1, self.budgets[row] // 2):
                self.halfway[row], self.halfway_loss[row] = self.best[row], self.loss[row]
        return found


def _timesteps(observation: Observation) -> Tensor:
    assert observation.timesteps is not None
    return observation.timesteps


def _reconstructed(found: _Found) -> Reconstruction:
    """Return the clean images of step 3, for granted noise."""
    error = found.image_error(torch.ones(1, device=found.x.device))
    return Reconstruction(found.x, found.spent, float(found.loss.mean()), predicted_psnr=_decibels(error), note=found.note)


def _solved(observation: Observation, found: _Found, rounds: int, generator: torch.Generator) -> Reconstruction:
    """Return images and noise from the noisy images found, with the residuals of step 4."""
    t, names, network = _timesteps(observation), list(observation.update), observation.network
    observed = [observation.update[name] for name in names]
    linear = LinearUpdate(network, names, found.x, t, threads_for(found.x.device))
    weights = metric(network, names, found.x, t, observed, generator)
    path = solve(linear, weights, observed, max(rounds - CHECKING_ROUNDS, rounds // 2))
    checked = solve(linear, weights.half(), observed, min(CHECKING_ROUNDS, rounds - rounds // 2), path[-1])
    missing = [a - b for a, b in zip(observed, linear.times(path[-1]), strict=True)]
    (x_0, eps), (halfway, _), (other, _) = (
        observation.schedule.denoised(found.x, t, linear.output - residuals)
        for residuals in (path[-1], path[len(path) // 2], checked[-1])
    )
    linear.close()
    error = _difference(x_0, halfway) + _difference(x_0, other) + found.image_error(observation.schedule.signal[t])
    if not found.all_converged:
        error = torch.ones_like(error)
    return Reconstruction(
        x_0,
        found.spent + len(path) + len(checked) - 2,
        float(sum(value.square().sum() for value in missing)),
        noise=eps,
        predicted_psnr=_decibels(error),
        note=found.note,
    )


def _difference(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared differences (N,) of images in [-1, 1], on [0, 1]."""
    return (images.clamp(-1, 1) - others.clamp(-1, 1)).square().flatten(1).mean(1) / 4


def _decibels(error: Tensor) -> Tensor:
    """Return the PSNR of mean squared errors (N,) on [0, 1] images, from 0 to 100 dB."""
    return -10 * error.clamp(1e-10, 1).log10()
