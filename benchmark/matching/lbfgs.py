"""L-BFGS with strong Wolfe line searches on many searches at once. Each has its own direction, step, memory and end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.matching.search import Searches
from benchmark.matching.wolfe import LineSearch, strong_wolfe

HISTORY = 100
"""The number of moves that are remembered."""

FIRST_MOVE = 0.1
"""Root mean square of the first trial move, before the curvature is known. Images lie in [-1, 1]."""


def lbfgs(searches: Searches, history: int = HISTORY) -> None:
    """Run L-BFGS on all searches; every round evaluates each search once, at its own stage of its line search.

    If a line search finds nothing better, the search clears its memory and goes along the negative gradient. If that fails
    too, it ends.
    """
    state = _State(searches, history)
    rows = state.begin(searches.with_budget())
    while rows := searches.with_budget(rows):
        rows = state.advance(rows)


class _State:
    """The state of the P searches."""

    def __init__(self, searches: Searches, history: int) -> None:
        self.searches = searches
        self.x = searches.start.clone()
        self.value = [math.inf] * len(self.x)
        self.gradient = torch.zeros_like(self.x)
        self.low_gradient = torch.zeros_like(self.x)
        self.low_value = [math.inf] * len(self.x)
        self.direction = torch.zeros_like(self.x)
        self.step = [0.0] * len(self.x)
        self.line_searches: dict[int, LineSearch] = {}
        self.memory = _Memory(self.x, min(history, max(searches.budgets)))

    def begin(self, rows: Sequence[int]) -> list[int]:
        """Evaluate the starts and return the searches that can continue."""
        if not rows:
            return []
        values, gradients = self.searches(self.x[rows], rows)
        for row, value in zip(rows, values, strict=True):
            self.value[row] = value
        self.gradient[rows] = gradients
        return self._start_line_searches([row for row in rows if math.isfinite(self.value[row])])

    def advance(self, rows: Sequence[int]) -> list[int]:
        """Evaluate each search once, act on the result, and return the searches that continue."""
        values, gradients = self.searches(self.x[rows] + self._moves(rows), rows)
        slopes = (gradients * self.direction[rows]).sum(1, dtype=torch.float64).tolist()
        running, kept, ended = [], [], []
        for place, row in enumerate(rows):
            tried = self.step[row]
            try:
                self.step[row], low = self.line_searches[row].send((values[place], slopes[place]))
                running.append(row)
                is_best = low == tried
            except StopIteration as end:
                self.step[row] = end.value
                ended.append(row)
                is_best = end.value == tried
            if is_best:
                self.low_value[row] = values[place]
                kept.append(place)
        self.low_gradient[[rows[place] for place in kept]] = gradients[kept]
        return sorted(running + self._finish_line_searches(ended))

    def _moves(self, rows: Sequence[int]) -> Tensor:
        steps = torch.tensor([self.step[row] for row in rows], dtype=torch.float64).to(self.x)
        return steps[:, None] * self.direction[rows]

    def _finish_line_searches(self, rows: Sequence[int]) -> list[int]:
        """Finish line searches: move, remember, aim again. One that found nothing better is tried again without memory."""
        moved = [row for row in rows if self.step[row] > 0]
        stuck = [row for row in rows if self.step[row] == 0 and self.memory.count[row]]
        self.memory.forget(stuck)
        if moved:
            s = self._moves(moved)
            self.memory.add(moved, s, self.low_gradient[moved] - self.gradient[moved])
            self.x[moved] += s
            self.gradient[moved] = self.low_gradient[moved]
            for row in moved:
                self.value[row] = self.low_value[row]
        return self._start_line_searches(sorted(moved + stuck))

    def _start_line_searches(self, rows: Sequence[int]) -> list[int]:
        """Start a line search in a new direction for each; return those that continue. One with a zero gradient ends."""
        if not rows:
            return []
        gradient = self.gradient[rows]
        direction = -self.memory.times(rows, gradient)
        slopes = (gradient * direction).sum(1, dtype=torch.float64).tolist()
        sizes = gradient.square().mean(1, dtype=torch.float64).sqrt().tolist()
        started = []
        for place, row in enumerate(rows):
            if not (math.isfinite(slopes[place]) and slopes[place] < 0):
                if not (self.memory.count[row] and sizes[place] > 0):
                    continue
                self.memory.forget([row])
                direction[place] = -gradient[place]
                slopes[place] = -float(gradient[place].square().sum(dtype=torch.float64))
            first = 1.0 if self.memory.count[row] else FIRST_MOVE / sizes[place]
            self.line_searches[row] = strong_wolfe(self.value[row], slopes[place], first)
            self.step[row], _ = next(self.line_searches[row])
            started.append(row)
        self.direction[rows] = direction
        return started


class _Memory:
    """The last m moves s and changes of gradient y of each search, the newest at the end, and their inner products.

    Unused places hold zeros. Products are stored, and systems solved, in float64.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        searches, n = like.shape
        self.s, self.y = like.new_zeros(searches, size, n), like.new_zeros(searches, size, n)
        self.sy = like.new_zeros(searches, size, size, dtype=torch.float64)
        self.yy = torch.zeros_like(self.sy)
        self.count = [0] * searches

    def forget(self, rows: Sequence[int]) -> None:
        for values in (self.s, self.y, self.sy, self.yy):
            values[list(rows)] = 0
        for row in rows:
            self.count[row] = 0

    def add(self, rows: Sequence[int], s: Tensor, y: Tensor) -> None:
        """Remember a pair for each search whose curvature is positive."""
        curved = ((s * y).sum(1) > 1e-10 * y.square().sum(1)).tolist()
        places = [place for place, good in enumerate(curved) if good]
        if not places:
            return
        rows, s, y = [rows[place] for place in places], s[places], y[places]
        for place, row in enumerate(rows):
            for values, new in ((self.s, s), (self.y, y)):
                values[row, :-1] = values[row, 1:].clone()
                values[row, -1] = new[place]
        for values, left in ((self.sy, self.s), (self.yy, self.y)):
            shifted = torch.zeros_like(values[rows])
            shifted[:, :-1, :-1] = values[rows][:, 1:, 1:]
            shifted[:, :, -1] = _product(left[rows], y)
            shifted[:, -1, :-1] = shifted[:, :-1, -1]  # only the upper triangle of S^T Y is used, and Y^T Y is symmetric
            values[rows] = shifted
        for row in rows:
            self.count[row] = min(self.count[row] + 1, self.s.shape[1])

    def times(self, rows: Sequence[int], g: Tensor) -> Tensor:
        """Return H g, with H the estimate of the inverse Hessian: the compact form of Byrd, Nocedal and Schnabel 1994.

        H = gamma I + [S, gamma Y] [[R^-T (D + gamma Y^T Y) R^-1, -R^-T], [-R^-1, 0]] [S^T; gamma Y^T]
        """
        used = max(self.count[row] for row in rows)
        if not used:
            return g
        s, y = self.s[rows][:, -used:], self.y[rows][:, -used:]
        sy, yy = self.sy[rows][:, -used:, -used:], self.yy[rows][:, -used:, -used:]
        d = sy.diagonal(dim1=1, dim2=2)
        r = sy.triu() + torch.diag_embed((d == 0).double())
        newest = d[:, -1:]
        gamma = torch.where(newest > 0, newest / yy[:, -1:, -1], torch.ones_like(newest))
        u = torch.linalg.solve_triangular(r, _product(s, g)[..., None], upper=True)
        right = d[..., None] * u + gamma[..., None] * (yy @ u - _product(y, g)[..., None])
        top = torch.linalg.solve_triangular(r.transpose(1, 2), right, upper=False)
        scale = gamma.to(g)
        return scale * g + _combined(s, top) - scale * _combined(y, u)


def _product(rows: Tensor, vector: Tensor) -> Tensor:
    """Return (A, m, n) times (A, n) as (A, m), converted to float64."""
    return torch.bmm(rows, vector[..., None])[..., 0].double()


def _combined(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sum (A, n) over m of (A, m, n) with weights (A, m, 1)."""
    return torch.bmm(rows.transpose(1, 2), weights.to(rows))[..., 0]
