"""Adam (Kingma and Ba 2015, arXiv 1412.6980) on many independent searches at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmark.matching.search import Searches

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8

MILESTONES = (3 / 8, 5 / 8, 7 / 8)
"""Shares of the budget after which signed Adam shortens its step."""


def constant(spent: float) -> float:
    """Return 1 for any spent share of the budget."""
    return 1.0


def cosine_decay(spent: float) -> float:
    """Return a factor that falls from 1 to 0 along a half cosine with the spent share of the budget."""
    return (1 + math.cos(math.pi * spent)) / 2


def adam(searches: Searches, lr: float | Mapping[str, float], decay: Callable[[float], float] = constant) -> None:
    """Run Adam with step size `lr`, one for all variables or one for each, times `decay`. By default the step size is constant.

    A search's first step follows its first evaluation, and has the full size `lr` under every decay.
    """
    rate = searches.by_variable(lr)

    def move(x: Tensor, step: Tensor, rows: Sequence[int]) -> Tensor:
        factors = torch.tensor([decay((searches.spent[row] - 1) / searches.budgets[row]) for row in rows]).to(x)
        return x - factors[:, None] * rate * step

    _descend(searches, move, lambda gradient: gradient)


def signed_adam(searches: Searches, lr: float, bounds: tuple[float, float], decay: float = 0.1) -> None:
    """Run Adam on the sign of the gradient, clipped to `bounds`.

    The step is multiplied by `decay` at 3/8, 5/8 and 7/8 of the budget. This is the optimiser of Geiping et al. 2020 (arXiv
    2003.14053), as in their published code.
    """

    def move(x: Tensor, step: Tensor, rows: Sequence[int]) -> Tensor:
        passed = [sum(searches.spent[row] > int(searches.budgets[row] * share) for share in MILESTONES) for row in rows]
        rates = torch.tensor([lr * decay**count for count in passed]).to(x)
        return (x - rates[:, None] * step).clamp(*bounds)

    _descend(searches, move, torch.sign)


def _descend(
    searches: Searches, move: Callable[[Tensor, Tensor, Sequence[int]], Tensor], transform: Callable[[Tensor], Tensor]
) -> None:
    """Run all searches in lockstep.

    `transform` maps a gradient to the one that the moments use; `move` takes a step of length about 1.
    """
    x = searches.start.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    rows, count = searches.with_budget(), 0
    while rows:
        losses, gradients = searches(x[rows], rows)
        count += 1
        finite = [place for place, loss in enumerate(losses) if math.isfinite(loss)]
        rows, gradient = [rows[place] for place in finite], transform(gradients[finite])
        first[rows] = BETA_1 * first[rows] + (1 - BETA_1) * gradient
        second[rows] = BETA_2 * second[rows] + (1 - BETA_2) * gradient.square()
        deviation = (second[rows] / (1 - BETA_2**count)).sqrt() + EPS
        x[rows] = move(x[rows], first[rows] / (1 - BETA_1**count) / deviation, rows)
        rows = searches.with_budget(rows)
