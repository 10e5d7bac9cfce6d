"""The search loops. A cost takes the search variables by name; a loop returns the best ones it met by that cost alone.

An evaluation is one cost with its gradient; a loop never spends more of them than it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

Variables = Mapping[str, Tensor]
Cost = Callable[[Variables], Tensor]


@dataclass(frozen=True)
class Step:
    """The state of a search after one evaluation, for whoever watches: the count so far and the cost just seen."""

    evaluation: int
    loss: float


@dataclass(frozen=True, eq=False)
class Solution:
    """The best variables that a search met, their cost (infinite if none was finite) and the evaluations spent."""

    variables: Variables
    loss: float
    evaluations: int

    @property
    def diverged(self) -> str | None:
        """Why the variables mean nothing, None where they do."""
        return None if self.loss < float("inf") else "the matching loss was never finite"


def best_of(solutions: Sequence[Solution]) -> Solution:
    """The restart with the lowest cost, with the evaluations of all of them."""
    best = min(solutions, key=lambda solution: solution.loss)
    return Solution(best.variables, best.loss, sum(solution.evaluations for solution in solutions))


_watcher: ContextVar[Callable[[Step], None]] = ContextVar("watcher", default=lambda step: None)


@contextmanager
def watching(watcher: Callable[[Step], None]) -> Iterator[None]:
    """Within this context, every search calls `watcher` after each evaluation."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class _Spent(Exception):
    """The budget is spent."""


class _NotFinite(Exception):
    """The cost left the finite numbers."""


class _Search:
    """Counts evaluations, remembers the best variables, and stops the optimiser around it."""

    def __init__(self, cost: Cost, start: Variables, evaluations: int) -> None:
        self.cost = cost
        self.variables = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        self.budget = evaluations
        self.spent = 0
        self.best = {name: value.detach().clone() for name, value in start.items()}
        self.best_loss = float("inf")

    def evaluate(self) -> Tensor:
        """One evaluation at the present variables: sets their gradients and returns the cost."""
        if self.spent == self.budget:
            raise _Spent
        loss = self.cost(self.variables)
        gradients = torch.autograd.grad(loss, list(self.variables.values()))
        for variable, gradient in zip(self.variables.values(), gradients, strict=True):
            variable.grad = gradient
        self.spent += 1
        value = loss.item()
        if value < self.best_loss:
            self.best_loss = value
            self.best = {name: variable.detach().clone() for name, variable in self.variables.items()}
        _watcher.get()(Step(self.spent, value))
        if not torch.isfinite(loss):
            raise _NotFinite
        return loss.detach()

    def return_to_best(self) -> None:
        with torch.no_grad():
            for name, variable in self.variables.items():
                variable.copy_(self.best[name])

    def solution(self) -> Solution:
        return Solution(self.best, self.best_loss, self.spent)


def lbfgs(cost: Cost, start: Variables, evaluations: int, history: int = 100) -> Solution:
    """L-BFGS with a strong Wolfe line search (torch's).

    Where it stands still, or a step leaves the finite numbers, it starts afresh from its best point as long as that helps.
    """
    search = _Search(cost, start, evaluations)
    before = float("inf")
    try:
        while True:
            optimiser = torch.optim.LBFGS(
                list(search.variables.values()),
                max_iter=evaluations,
                max_eval=evaluations,
                history_size=history,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
            with suppress(_NotFinite):
                optimiser.step(search.evaluate)  # type: ignore[no-untyped-call]
            if search.best_loss >= before:
                break
            before = search.best_loss
            search.return_to_best()
    except _Spent:
        pass
    return search.solution()


def adam(cost: Cost, start: Variables, evaluations: int, lr: float | Mapping[str, float]) -> Solution:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980; torch's) with a constant step size, one for all variables or each its own."""
    search = _Search(cost, start, evaluations)
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(start, lr)
    optimiser = torch.optim.Adam([{"params": [value], "lr": rates[name]} for name, value in search.variables.items()])
    with suppress(_Spent, _NotFinite):
        while True:
            search.evaluate()
            optimiser.step()
    return search.solution()


def signed_adam(
    cost: Cost, start: Variables, evaluations: int, lr: float, bounds: tuple[float, float], decay: float = 0.1
) -> Solution:
    """Adam on the sign of the gradient, the step times `decay` at 3/8, 5/8 and 7/8 of the budget, clipped to `bounds`.

    The optimiser of Geiping et al. 2020 (arXiv 2003.14053), as in their published code.
    """
    search = _Search(cost, start, evaluations)
    optimiser = torch.optim.Adam(list(search.variables.values()), lr=lr)
    milestones = [int(evaluations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=decay)
    try:
        while True:
            search.evaluate()
            for variable in search.variables.values():
                assert variable.grad is not None
                variable.grad.sign_()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for variable in search.variables.values():
                    variable.clamp_(*bounds)
    except (_Spent, _NotFinite):
        pass
    return search.solution()
