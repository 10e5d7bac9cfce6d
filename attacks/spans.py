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

from benchmark.attacks._kronecker import metric
from benchmark.attacks._linear_residual import LinearUpdate, solve
from benchmark.attacks._residual import ENOUGH_EVALUATIONS, default_start, search
from benchmark.attacks._span_search import SiteSpans, Sought, SpanSearch, complete_spans
from benchmark.base.ranges import Count, InnerShare
from benchmark.closed_form.sites import sites_of_each
from benchmark.closed_form.timesteps import with_timesteps
from benchmark.matching.chunks import threads_for
from benchmark.matching.defense_aware import DISTANCE_PARAMETERS
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import mean_colour_start
from benchmark.matching.search import Evaluate, Searches
from benchmark.outlook import Diagnosis, Outlook, Prediction, count, of_search, refusal, unknown
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

REPELLED = 50
"""The most evaluations of a search that is repelled from the images found."""

PATIENCE = 30
"""A search is judged after every so many evaluations."""

STALLED = 0.8
"""A search ends if its cost stays above this share of its last cost: at an image, or caught elsewhere."""

REPELLING_SITES = 3
"""The number of last layers by which a search is repelled from the images found."""


@dataclass(frozen=True, kw_only=True)
class Spans(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, steps 3 and 4 together.
        search_share: the largest share of the budget for step 3 if the noise is private. Step 4 has all that is left.
    """

    adapts_to: ClassVar[frozenset[str]] = DISTANCE_PARAMETERS | {"least_timestep"}

    evaluations: Count = 800
    search_share: InnerShare = 0.75

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._attack(known, generator))

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        if refused := refusal(diagnosis):
            return refused
        if not diagnosis.complete:
            return of_search(diagnosis, self.evaluations, ENOUGH_EVALUATIONS, success_db)
        if diagnosis.disturbed:
            return of_search(diagnosis, self.evaluations - self._step_3_budget, ENOUGH_EVALUATIONS, success_db)
        if self.evaluations < diagnosis.enough(type(self).evaluations):
            return unknown(f"{len(diagnosis.complete)} layers are complete, but {self.evaluations} evaluations may be too few")
        found = f"{len(diagnosis.complete)} layers span all patches of {count(diagnosis.images)}"
        return Outlook(Prediction.RECOVERED, f"{found}, and nothing disturbs them")

    @property
    def _step_3_budget(self) -> int:
        """Return the evaluations for step 3 if the noise is private."""
        return max(1, round(self.search_share * self.evaluations))

    def _attack(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        spans = list(map(complete_spans, observations, sites_of_each(observations)))
        groups: dict[object, list[int]] = {}
        for place, observation in enumerate(observations):
            names = tuple(site.name for site in spans[place])
            kind = (id(observation.network), observation.batch_shape, observation.noise is None, names)
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
        if not spans[0]:
            return self._match(observations, [0] * len(observations), "no layer is wide enough", generator)
        granted_noise = observations[0].noise is not None
        budget = self.evaluations if granted_noise else self._step_3_budget
        found = _Search(observations, spans, budget).run(generator)
        rebuilt: dict[int, Reconstruction] = {}
        lost = [place for place, images in enumerate(found) if not images.any_found]
        if lost:
            spent = [found[place].spent for place in lost]
            matched = self._match([observations[place] for place in lost], spent, "no noisy image was found", generator)
            rebuilt.update(zip(lost, matched, strict=True))
        for place in sorted(set(range(len(found))) - set(lost)):
            observation, images = observations[place], found[place]
            rounds = self.evaluations - images.spent
            solved = _reconstructed(images) if granted_noise else _solved(observation, images, rounds, generator)
            rebuilt[place] = solved
        return [rebuilt[place] for place in range(len(found))]

    def _match(
        self, observations: Sequence[Observation], spent: Sequence[int], reason: str, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Search all images together, as the attack `residual` does, with the rest of the budget. Nothing is accepted."""
        starts = [default_start(observation, generator) for observation in observations]
        solutions = search(observations, starts, [self.evaluations - before for before in spent])
        return [
            dataclasses.replace(
                solution.reconstruction(),
                evaluations=before + solution.evaluations,
                predicted_psnr=torch.zeros(observation.image_count),
                note=f"{reason}: matched gradients",
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

    def __init__(self, observations: Sequence[Observation], spans: Sequence[SiteSpans], budget: int) -> None:
        self.observations, self.spans, self.budget = observations, spans, budget
        self.images = observations[0].image_count
        self.sought = [
            Sought(update, int(t), None if observation.noise is None else observation.noise[image])
            for update, observation in enumerate(observations)
            for image, t in enumerate(_timesteps(observation).tolist())
        ]
        self.x = torch.stack([mean_colour_start(observation) for observation in observations]).flatten(0, 1).flatten(1)
        self.loss = [math.inf] * len(self.sought)
        self.error = self.x.new_full((len(self.sought),), math.inf)
        self.spent = [0] * len(observations)  # passes of single images

    def run(self, generator: torch.Generator) -> list[_Found]:
        """Search until all images are found or the budget is spent."""
        rows: Sequence[int] = range(len(self.sought))
        while rows:
            self._explore(rows, generator)
            rows = self._lost()
        shape = self.observations[0].batch_shape
        losses, error = (values.view(-1, self.images) for values in (torch.tensor(self.loss).to(self.error), self.error))
        x = self.x.view(-1, *shape)
        return [
            _Found(x[update], losses[update], error[update], math.ceil(spent / self.images))
            for update, spent in enumerate(self.spent)
        ]

    def _explore(self, rows: Sequence[int], generator: torch.Generator) -> None:
        """Search images from new starts, first repelled from the images found, then not."""
        start = self._starts(rows, generator)
        if repellers := self._repellers(rows):
            repelled = SpanSearch(self.observations[0], self.spans, self._of(rows), repellers)
            start = self._searched(repelled, start, [REPELLED] * len(rows), rows).best
        searches = self._searched(SpanSearch(self.observations[0], self.spans, self._of(rows)), start, self._shares(rows), rows)
        for place, row in enumerate(rows):
            if searches.loss[place] < self.loss[row]:
                self.loss[row], self.x[row] = searches.loss[place], searches.best[place]
                self.error[row] = searches.remaining_error(place)
        for row in self._copies():
            self.loss[row] = math.inf

    def _starts(self, rows: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return new starts: the mean colour of public images with fresh noise, or N(0, 1) for clean images."""
        noise = torch.randn(len(rows), *self.observations[0].image_shape, generator=generator).to(self.x)
        if self.sought[0].noise is None:
            colours = torch.stack([mean_colour_start(self.observations[self.sought[row].update])[0] for row in rows])
            t = torch.tensor([self.sought[row].timestep for row in rows], device=self.x.device)
            noise = self.observations[0].schedule.add_noise(colours, t, noise)
        return noise.flatten(1)

    def _shares(self, rows: Sequence[int]) -> list[int]:
        """Divide the budget that is left to each update among its images."""
        count = Counter(self.sought[row].update for row in rows)
        return [max(1, self._left(self.sought[row].update) // count[self.sought[row].update]) for row in rows]

    def _left(self, update: int) -> int:
        return self.budget * self.images - self.spent[update]

    def _lost(self) -> list[int]:
        """Return the images that are not found and whose update can afford another exploration of them all."""
        lost = [row for row, loss in enumerate(self.loss) if not loss < FOUND]
        return [row for row, share in zip(lost, self._shares(lost), strict=True) if share >= 2 * REPELLED]

    def _copies(self) -> list[int]:
        """Return the images that are copies of an image of the same update with a lower cost."""
        found = [row for row, loss in enumerate(self.loss) if loss < FOUND]
        pairs = itertools.combinations(sorted(found, key=self.loss.__getitem__), 2)
        return [b for a, b in pairs if self.sought[a].update == self.sought[b].update and self._are_alike(a, b)]

    def _are_alike(self, a: int, b: int) -> bool:
        return bool((self.x[a] - self.x[b]).norm() < COPY_DISTANCE * self.x[a].norm())

    def _repellers(self, rows: Sequence[int]) -> list[SiteSpans]:
        """Return the spans of the images found behind each update; empty if there are none."""
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

    def _searched(self, evaluate: SpanSearch, start: Tensor, budgets: Sequence[int], rows: Sequence[int]) -> _UntilStalled:
        searches = _UntilStalled(evaluate, start, budgets, backend="spans", share=1 / self.images)
        try:
            lbfgs(searches)
        finally:
            evaluate.close()
        for row, spent in zip(rows, searches.spent, strict=True):
            self.spent[self.sought[row].update] += spent
        return searches


class _UntilStalled(Searches):
    """Searches that end where the cost no longer falls: an image is found, or the search is caught elsewhere.

    Attributes:
        milestones: for each search the best points (n,) and their costs after every `PATIENCE` evaluations.
    """

    def __init__(self, evaluate: Evaluate, start: Tensor, budgets: Sequence[int], backend: str, share: float) -> None:
        super().__init__(evaluate, start, budgets, backend=backend, share=share)
        self.milestones: list[list[tuple[Tensor, float]]] = [[] for _ in start]

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[list[float], Tensor]:
        """See `Searches.__call__`."""
        evaluated = super().__call__(x, rows)
        for row in rows:
            if self.spent[row] % PATIENCE == 0:
                self.milestones[row] = [*self.milestones[row][-2:], (self.best[row].clone(), self.loss[row])]
        return evaluated

    def with_budget(self, rows: Sequence[int] | None = None) -> list[int]:
        """See `Searches.with_budget`; without the searches that have stalled."""
        return [row for row in super().with_budget(rows) if not self._has_stalled(row)]

    def _has_stalled(self, row: int) -> bool:
        costs = [cost for _, cost in self.milestones[row][-2:]]
        return len(costs) == 2 and costs[1] > STALLED * costs[0]

    def remaining_error(self, row: int) -> float:
        """Return the mean squared error that is left if the moves between milestones shrink at the same rate from now on."""
        if len(self.milestones[row]) < 3:
            return math.inf
        (a, _), (b, _), (c, _) = self.milestones[row]
        before, last = float((b - a).square().mean().sqrt()), float((c - b).square().mean().sqrt())
        rate = last / before if before else 0.0
        return (last * rate / (1 - rate)) ** 2 if rate < 1 else math.inf


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
