"""Search for all noisy images behind updates, each alone by the spans of its update. The method is ours.

Every image starts at the mean colour of public images, noised to its own timestep. A search ends at an image, or where its cost
stalls high: it was caught at an image of another timestep. It then starts again from other noise, first repelled from the
images that have been found.

If some timesteps are repeated and which ones is unknown, the images with the distinct ones are searched first. Each other image
is then searched at one of these timesteps after the other, as an image that was lost.

What is left of the budget makes all images of an update more exact: an error of one of them disturbs the residuals of all.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.attacks._span_search import SiteSpans, Sought, SpanSearch
from benchmark.closed_form.timesteps import UNDECIDED
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import mean_colour_start
from benchmark.matching.search import Evaluate, Searches
from benchmark.types import Observation

FOUND = 1e-3
"""An image is found if less than this share of its patches lies outside the spans."""

CONVERGED = 1e-4
"""The cost below which a found image may be accepted."""

SOLVED = 1e-8
"""The cost below which a search ends: the rest of the budget is for images that are lost, and for the residuals."""

COPY_DISTANCE = 0.5
"""Two noisy images of one update are the same one if they differ by less than this share of their norm.

Different ones differ by more than their norm: their noise is independent.
"""

REPELLED = 50
"""The most evaluations of a search that is repelled from the images found."""

SOLVED_BEST = 1e-12
"""The cost below which nothing is left to refine: the truth costs 1e-13 to 1e-9 by rounding."""

LEAST_REFINEMENT = 60
"""The fewest evaluations for which a search is continued: it starts without its memory."""

PATIENCE = 30
"""A search is judged after every so many evaluations."""

STALLED = 0.8
"""A search ends if `PATIENCE` evaluations leave more than this share of its cost: at an image, or caught elsewhere."""

SAFETY = 10.0
"""The factor by which a predicted squared error is increased."""

LARGEST_RATE = 0.9
"""The largest rate at which moves are expected to shrink. Then nine times the last move is still to come."""

REPELLING_SITES = 3
"""The number of last layers by which a search is repelled from the images found."""


@dataclass(frozen=True, eq=False)
class Found:
    """The images found behind one update.

    Attributes:
        x: (N, C, H, W) noisy images.
        timesteps: (N,) their timesteps.
        loss: (N,) shares of the patches outside the spans.
        error: (N,) estimated mean squared errors of x.
        spent: evaluations.
    """

    x: Tensor
    timesteps: Tensor
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
        finite = self.loss[self.loss.isfinite()]
        return f"found {found} of {len(self.loss)} noisy images, largest cost {float(finite.max()):.1e}"


class BatchSearch:
    """The search for the N noisy images behind each of P updates.

    Attributes:
        sought: the P N images, in the order of their updates, each with the timestep of its best noisy image.
        open: for each image the timesteps that it may have; empty if its own is known.
        x: (P N, C H W) the best noisy images so far.
        loss: their costs, infinite for those not yet searched and for copies of another image of the same update.
        error: (P N,) their estimated mean squared errors.
        spent: passes of single images, for each update.
    """

    def __init__(self, observations: Sequence[Observation], spans: Sequence[SiteSpans], budget: int) -> None:
        """Prepare the search.

        Args:
            observations: updates of one network and one image shape, with known timesteps, some of them `UNDECIDED`.
            spans: the spans of each update, all of the same sites.
            budget: evaluations for each update. One evaluation is a pass of all its N images.
        """
        self.observations, self.spans, self.budget = observations, spans, budget
        self.images = observations[0].image_count
        self.sought, self.open = list[Sought](), list[list[int]]()
        for update, observation in enumerate(observations):
            timesteps = known_timesteps(observation).tolist()
            distinct = [t for t in timesteps if t != UNDECIDED]
            for place, t in enumerate(timesteps):
                candidates = [] if t != UNDECIDED else [distinct[(place + k) % len(distinct)] for k in range(len(distinct))]
                self.sought.append(Sought(update, candidates[0] if candidates else t))
                self.open.append(candidates)
        self.x = torch.stack([mean_colour_start(observation) for observation in observations]).flatten(0, 1).flatten(1)
        self.loss = [math.inf] * len(self.sought)
        self.error = self.x.new_full((len(self.sought),), math.inf)
        self.spent = [0] * len(observations)

    def run(self, generator: torch.Generator) -> list[Found]:
        """Search until all images are found or the budget is spent."""
        rows = [row for row, candidates in enumerate(self.open) if not candidates]
        for attempt in itertools.count():
            if not rows:
                break
            self._explore(rows, attempt, generator)
            rows = self._lost()
        self._refine()
        shape = self.observations[0].batch_shape
        losses, error = (values.view(-1, self.images) for values in (torch.tensor(self.loss).to(self.error), self.error))
        t = torch.tensor([sought.timestep for sought in self.sought], device=self.x.device).view(-1, self.images)
        x = self.x.view(-1, *shape)
        return [
            Found(x[update], t[update], losses[update], error[update], math.ceil(spent / self.images))
            for update, spent in enumerate(self.spent)
        ]

    def _explore(self, rows: Sequence[int], attempt: int, generator: torch.Generator) -> None:
        """Search images from new starts, first repelled from the images found, then not."""
        sought = [self._sought_at(row, attempt) for row in rows]
        start = self._starts(sought, generator)
        if repellers := self._repellers(sought):
            repelled = SpanSearch(self.observations[0], self.spans, sought, repellers)
            budgets = [REPELLED if repellers[one.update] else 0 for one in sought]
            start = self._searched(repelled, start, budgets, sought, SOLVED).best
        free, solved = SpanSearch(self.observations[0], self.spans, sought), SOLVED if self.images > 1 else SOLVED_BEST
        searches = self._searched(free, start, self._shares(rows), sought, solved)
        for place, row in enumerate(rows):
            if searches.loss[place] < self.loss[row]:
                self.loss[row], self.x[row], self.sought[row] = searches.loss[place], searches.best[place], sought[place]
                self.error[row] = searches.remaining_error(place)
        for row in self._copies():
            self.loss[row] = math.inf

    def _refine(self) -> None:
        """Continue the searches of images that were found, with equal shares of the budget that is left to each update."""
        rows = [row for row, loss in enumerate(self.loss) if SOLVED_BEST < loss < CONVERGED]
        count = Counter(self.sought[row].update for row in rows)
        shares = {update: self._left(update) // images for update, images in count.items()}
        rows = [row for row in rows if shares[self.sought[row].update] >= LEAST_REFINEMENT]
        if not rows:
            return
        sought = [self.sought[row] for row in rows]
        free, budgets = SpanSearch(self.observations[0], self.spans, sought), [shares[one.update] for one in sought]
        searches = self._searched(free, self.x[rows], budgets, sought, SOLVED_BEST)
        for place, row in enumerate(rows):
            if searches.loss[place] < self.loss[row]:
                self.loss[row], self.x[row] = searches.loss[place], searches.best[place]
                self.error[row] = min(float(self.error[row]), searches.remaining_error(place))

    def _sought_at(self, row: int, attempt: int) -> Sought:
        """Return what an attempt searches for an image: an open timestep is another one at each attempt."""
        if not self.open[row]:
            return self.sought[row]
        return Sought(self.sought[row].update, self.open[row][attempt % len(self.open[row])])

    def _starts(self, sought: Sequence[Sought], generator: torch.Generator) -> Tensor:
        """Return new starts: the mean colour of public images with fresh noise, at first with the noise that is granted."""
        first = self.observations[0]
        noise = torch.randn(len(sought), *first.image_shape, generator=generator).to(self.x)
        if first.noise is not None and not any(self.spent):
            noise = torch.cat([observation.noise for observation in self.observations if observation.noise is not None])
        colours = torch.stack([mean_colour_start(self.observations[one.update])[0] for one in sought])
        t = torch.tensor([one.timestep for one in sought], device=self.x.device)
        return first.schedule.add_noise(colours, t, noise).flatten(1)

    def _shares(self, rows: Sequence[int]) -> list[int]:
        """Divide the budget that is left to each update among its images, with one share for those that will be lost.

        An image that is alone cannot be lost to another one. An image with an open timestep counts once for each candidate.
        """
        count = Counter[int]()
        for row in rows:
            count[self.sought[row].update] += len(self.open[row]) or 1
        kept = int(self.images > 1)
        return [max(1, self._left(self.sought[row].update) // (count[self.sought[row].update] + kept)) for row in rows]

    def _left(self, update: int) -> int:
        return self.budget * self.images - self.spent[update]

    def _lost(self) -> list[int]:
        """Return the images that have not converged and whose update can afford another exploration of them all."""
        lost = [row for row, loss in enumerate(self.loss) if not loss < CONVERGED]
        return [row for row, share in zip(lost, self._shares(lost), strict=True) if share >= 2 * REPELLED]

    def _copies(self) -> list[int]:
        """Return the images that are copies of an image of the same update with a lower cost."""
        found = [row for row, loss in enumerate(self.loss) if loss < FOUND]
        pairs = itertools.combinations(sorted(found, key=self.loss.__getitem__), 2)
        return [b for a, b in pairs if self.sought[a].update == self.sought[b].update and self._are_alike(a, b)]

    def _are_alike(self, a: int, b: int) -> bool:
        return bool((self.x[a] - self.x[b]).norm() < COPY_DISTANCE * self.x[a].norm())

    def _repellers(self, sought: Sequence[Sought]) -> list[SiteSpans]:
        """Return the spans of the images found behind each update; empty if there are none."""
        updates = {one.update for one in sought}
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

    def _searched(
        self, evaluate: SpanSearch, start: Tensor, budgets: Sequence[int], sought: Sequence[Sought], solved: float
    ) -> _UntilStalled:
        searches = _UntilStalled(evaluate, start, budgets, solved, share=1 / self.images)
        try:
            lbfgs(searches)
        finally:
            evaluate.close()
        for one, spent in zip(sought, searches.spent, strict=True):
            self.spent[one.update] += spent
        return searches


class _UntilStalled(Searches):
    """Searches that end at an image, or where the cost no longer falls because they are caught elsewhere.

    Attributes:
        solved: the cost at which they end.
        milestones: for each search the best points (n,) and their costs after every `PATIENCE` evaluations.
    """

    def __init__(self, evaluate: Evaluate, start: Tensor, budgets: Sequence[int], solved: float, share: float) -> None:
        super().__init__(evaluate, start, budgets, backend="spans", share=share)
        self.solved = solved
        self.milestones: list[list[tuple[Tensor, float]]] = [[] for _ in start]

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[list[float], Tensor]:
        """See `Searches.__call__`."""
        evaluated = super().__call__(x, rows)
        for row in rows:
            if self.spent[row] % PATIENCE == 0:
                self.milestones[row] = [*self.milestones[row][-2:], (self.best[row].clone(), self.loss[row])]
        return evaluated

    def with_budget(self, rows: Sequence[int] | None = None) -> list[int]:
        """See `Searches.with_budget`; without the searches that have ended."""
        return [row for row in super().with_budget(rows) if not self._has_ended(row)]

    def _has_ended(self, row: int) -> bool:
        costs = [cost for _, cost in self.milestones[row]]
        return len(costs) == 3 and (costs[2] < self.solved or costs[2] > STALLED * costs[1])

    def remaining_error(self, row: int) -> float:
        """Return the mean squared error that the moves between milestones predict; infinite if there were too few."""
        if len(self.milestones[row]) < 3:
            return math.inf
        a, b, c = (best[None] for best, _ in self.milestones[row])
        return float(remaining_error(a, b, c))


def remaining_error(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the mean squared errors (N,) of c if the moves a to b to c (N, ...) keep shrinking at the same rate.

    The moves still to come are then a geometric series. Its sum is increased by the factor `SAFETY`, because the last moves
    shrink most slowly. The rate counts as at most `LARGEST_RATE`: at the limit of float32 moves no longer shrink. The error is
    infinite where nothing moved.
    """
    before, last = ((y - x).flatten(1).square().mean(1).sqrt() for x, y in ((a, b), (b, c)))
    rate = last / before.clamp_min(torch.finfo(before.dtype).tiny)
    rate = rate.clamp(max=LARGEST_RATE)
    return torch.where(before > 0, SAFETY * (last * rate / (1 - rate)).square(), math.inf)


def known_timesteps(observation: Observation) -> Tensor:
    """Return the timesteps (N,), which were granted or read."""
    assert observation.timesteps is not None
    return observation.timesteps
