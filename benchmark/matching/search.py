"""P searches side by side: what each has spent, the best point it met, and who watches.

An optimiser moves all searches that are under way together, one evaluation each per round, and drops those that are done; no
search knows of the others. An evaluation is one cost with its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmark.base.events import Step, announce
from benchmark.types import Reconstruction

Variables = Mapping[str, Tensor]

Evaluate = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""From the points (A, n) of the searches with the given numbers to their costs (A,) and gradients (A, n)."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The best variables that a search met.

    Attributes:
        variables: as they are named and shaped in the search's start.
        loss: their cost, infinite if none was finite.
        evaluations: what was spent.
        diverged: why the variables mean nothing, None where they do.
    """

    variables: Variables
    loss: float
    evaluations: int
    diverged: str | None = None

    def after(self, before: Solution) -> Solution:
        """The same, with the evaluations of a phase before it counted too."""
        return replace(self, evaluations=before.evaluations + self.evaluations)

    def reconstruction(self) -> Reconstruction:
        """The images (`x_0`), with the noise (`eps`) where that was searched."""
        x_0, eps = self.variables["x_0"], self.variables.get("eps")
        return Reconstruction(x_0, self.evaluations, self.loss, noise=eps, diverged=self.diverged)


def best_of(solutions: Sequence[Solution]) -> Solution:
    """The restart with the lowest cost, with the evaluations of all of them."""
    best = min(solutions, key=lambda solution: solution.loss)
    return replace(best, evaluations=sum(solution.evaluations for solution in solutions))


def check_restarts(evaluations: int, restarts: int) -> None:
    """Refuse a budget that has not one evaluation for each restart.

    Raises:
        ValueError: with one sentence for the user.
    """
    if restarts > evaluations:
        raise ValueError(f"restarts must be from 1 to evaluations ({evaluations}), not {restarts}")


def best_of_each(solutions: Sequence[Solution], restarts: int) -> list[Solution]:
    """`best_of` each run of `restarts` solutions."""
    return [best_of(solutions[first : first + restarts]) for first in range(0, len(solutions), restarts)]


class Searches:
    """P searches under way, of n numbers each; an optimiser evaluates through it and leaves its answer in it.

    Attributes:
        start: (P, n) where they begin.
        budgets: the most evaluations of each.
        spent: evaluations so far.
        loss: the lowest finite cost of each, infinite before there is one.
        best: (P, n) where that was.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        budgets: Sequence[int],
        layout: Sequence[tuple[str, int]] = (),
        backend: str = "",
    ) -> None:
        self.evaluate = evaluate
        self.backend = backend
        self.start = start
        self.budgets = list(budgets)
        self.layout = layout
        self.spent = [0] * len(start)
        self.loss = [math.inf] * len(start)
        self.best = start.clone()

    def open(self, rows: Sequence[int] | None = None) -> list[int]:
        """Those of `rows` (of all, if None) with budget left."""
        return [row for row in (range(len(self.start)) if rows is None else rows) if self.spent[row] < self.budgets[row]]

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[list[float], Tensor]:
        """One evaluation of each search in `rows`, at `x` (A, n): their costs, and gradients (A, n).

        A cost whose gradient is not finite is none: it comes back as nan.
        """
        costs, gradients = self.evaluate(x, rows)
        losses = torch.where(gradients.isfinite().all(1), costs, math.nan).tolist()
        better = []
        for place, (row, loss) in enumerate(zip(rows, losses, strict=True)):
            self.spent[row] += 1
            if loss < self.loss[row]:
                self.loss[row] = loss
                better.append(place)
            announce(Step(self.spent[row], loss, self.backend))
        if better:
            self.best[[rows[place] for place in better]] = x[better]
        return losses, gradients

    def by_variable(self, values: float | Mapping[str, float]) -> Tensor | float:
        """One value for all n numbers, or (n,) with each variable's own."""
        if not isinstance(values, Mapping):
            return values
        parts = [torch.full((size,), values[name]) for name, size in self.layout]
        return torch.cat(parts).to(self.start)


Optimiser = Callable[[Searches], None]
"""Spends the searches' budgets, as far as that helps."""
