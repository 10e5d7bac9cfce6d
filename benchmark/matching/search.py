"""P searches side by side: the evaluations spent by each and the best point it found.

An optimiser moves all running searches together, one evaluation each per round, and drops those that are done. The searches
are independent. An evaluation is one cost with its gradient. Each one is announced as an event.
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
"""A function from the points (A, n) of the searches with the given numbers to their costs (A,) and gradients (A, n)."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The best variables that a search found.

    Attributes:
        variables: the variables, with the names and shapes of the search's start.
        loss: their cost, infinite if no cost was finite.
        evaluations: the evaluations spent.
        diverged: why the variables mean nothing, None if they are valid.
    """

    variables: Variables
    loss: float
    evaluations: int
    diverged: str | None = None

    def after(self, before: Solution) -> Solution:
        """Return the same solution, with the evaluations of an earlier phase added."""
        return replace(self, evaluations=before.evaluations + self.evaluations)

    def reconstruction(self) -> Reconstruction:
        """Return the images (`x_0`) as a reconstruction, with the noise (`eps`) if it was searched."""
        x_0, eps = self.variables["x_0"], self.variables.get("eps")
        return Reconstruction(x_0, self.evaluations, self.loss, noise=eps, diverged=self.diverged)


def best_of(solutions: Sequence[Solution]) -> Solution:
    """Return the restart with the lowest cost, with the evaluations of all restarts."""
    best = min(solutions, key=lambda solution: solution.loss)
    return replace(best, evaluations=sum(solution.evaluations for solution in solutions))


def check_restarts(evaluations: int, restarts: int) -> None:
    """Check that the budget has at least one evaluation for each restart.

    Raises:
        ValueError: it has fewer; the message is one sentence for the user.
    """
    if restarts > evaluations:
        raise ValueError(f"restarts must be from 1 to evaluations ({evaluations}), not {restarts}")


def best_of_each(solutions: Sequence[Solution], restarts: int) -> list[Solution]:
    """Return `best_of` for each run of `restarts` solutions."""
    return [best_of(solutions[first : first + restarts]) for first in range(0, len(solutions), restarts)]


class Searches:
    """P running searches over n numbers each. An optimiser evaluates through this object, which records the best points.

    Attributes:
        start: (P, n) starting points.
        budgets: the most evaluations of each.
        spent: evaluations so far.
        loss: the lowest finite cost of each, infinite before there is one.
        best: (P, n) points of these costs.
        layout: names and sizes of the variables within the n numbers.
        backend: how updates are computed, for the announced events.
        share: the part of an evaluation that each step costs, for the announced events.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        budgets: Sequence[int],
        layout: Sequence[tuple[str, int]] = (),
        backend: str = "",
        share: float = 1.0,
    ) -> None:
        self.evaluate = evaluate
        self.backend, self.share = backend, share
        self.start = start
        self.budgets = list(budgets)
        self.layout = layout
        self.spent = [0] * len(start)
        self.loss = [math.inf] * len(start)
        self.best = start.clone()

    def with_budget(self, rows: Sequence[int] | None = None) -> list[int]:
        """Return the searches of `rows` (of all, if None) with budget left."""
        return [row for row in (range(len(self.start)) if rows is None else rows) if self.spent[row] < self.budgets[row]]

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[list[float], Tensor]:
        """Evaluate each search in `rows` once at `x` (A, n), and return costs and gradients (A, n).

        If a gradient is not finite, its cost is returned as NaN.
        """
        costs, gradients = self.evaluate(x, rows)
        losses = torch.where(gradients.isfinite().all(1), costs, math.nan).tolist()
        better = []
        for place, (row, loss) in enumerate(zip(rows, losses, strict=True)):
            self.spent[row] += 1
            if loss < self.loss[row]:
                self.loss[row] = loss
                better.append(place)
            announce(Step(self.spent[row], loss, self.backend, share=self.share))
        if better:
            self.best[[rows[place] for place in better]] = x[better]
        return losses, gradients

    def by_variable(self, values: float | Mapping[str, float]) -> Tensor | float:
        """Return one value for all n numbers, or a tensor (n,) with each variable's own value."""
        if not isinstance(values, Mapping):
            return values
        parts = [torch.full((size,), values[name]) for name, size in self.layout]
        return torch.cat(parts).to(self.start)


Optimiser = Callable[[Searches], None]
"""A function that spends the budgets of the searches, as long as that helps."""
