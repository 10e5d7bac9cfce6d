"""Finds which candidate inputs of linear layers explain a lossy update. This method is ours.

The input of a layer that takes the time embedding is one of T known vectors for each image. With the inputs e_1 .. e_n of the
images, each row of the layer's gradient is a combination of e_1 .. e_n, with coefficients of its own. So the method fits the
known coordinates of all layers by weighted least squares, for a given set of timesteps, and searches the set with the best fit.
It needs no complete rows: coordinates that were pruned are left out, and errors of known size weigh less.

The set grows by the timestep that explains most. Then each timestep in turn is replaced by the best one until nothing changes.
Misfits are in units of the errors, so half of a difference is a difference of log-likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SHARE = 1e-5
"""Standard deviation of coordinates that were not made noisy, as a share of their root mean square: that of rounding."""

MIN_NEW_SHARE = 1e-12
"""A candidate is ignored in a row if the chosen ones explain all but this share of its square there."""

FIT_TOLERANCE = 6.0
"""Standard deviations by which the misfit of the truth may exceed its mean."""

EXCESS_KURTOSIS = 3.0
"""Excess kurtosis of the errors for which the misfit is judged, that of Laplace noise. Other errors have less."""

STD_TOLERANCE = 0.1
"""Share by which the variance of the errors may be larger than stated. Its size is estimated from the update itself."""

MAX_SWEEPS = 20
"""Largest number of passes over the set in which timesteps are replaced."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The known coordinates of one layer's gradient.

    Attributes:
        rows: (O, n) float64, the gradient; with the bias as one more column if the layer has one.
        weights: (O, n) float64, one over the variance of each coordinate's error; 0 for unknown coordinates.
        candidates: (T, n) float64, the input of the layer at each timestep.
    """

    rows: Tensor
    weights: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class Fit:
    """A set of candidates that fits the evidence.

    Attributes:
        chosen: the numbers of the candidates.
        log_ratio: the least difference of log-likelihoods to the set with one of the candidates replaced.
        misfit: the sum of the squared errors, in units of their variance.
        freedom: the number of known coordinates minus the number of fitted coefficients.
    """

    chosen: tuple[int, ...]
    log_ratio: float
    misfit: float
    freedom: int

    @property
    def plausible(self) -> bool:
        """Return whether errors of the stated size explain the misfit."""
        spread = FIT_TOLERANCE * math.sqrt((2 + EXCESS_KURTOSIS) * self.freedom)
        return self.misfit <= (1 + STD_TOLERANCE) * self.freedom + spread


def fit(evidence: Sequence[Evidence], size: int) -> Fit:
    """Return the set of `size` candidates that fits best, as far as single replacements can find it."""
    chosen: list[int] = []
    for _ in range(size):
        chosen.append(int(_gains(evidence, chosen).argmax()))
    for _ in range(MAX_SWEEPS):
        before = list(chosen)
        for place in range(size):
            chosen[place] = int(_gains(evidence, chosen[:place] + chosen[place + 1 :]).argmax())
        if chosen == before:
            break
    best_two = [_gains(evidence, chosen[:place] + chosen[place + 1 :]).topk(2).values for place in range(size)]
    log_ratio = min(float(best - second) / 2 for best, second in best_two)
    misfit = sum(_misfit(one, chosen) for one in evidence)
    freedom = sum(int(((one.weights > 0).sum(1) - size).clamp(min=0).sum()) for one in evidence)
    return Fit(tuple(chosen), log_ratio, misfit, freedom)


def _gains(evidence: Sequence[Evidence], chosen: Sequence[int]) -> Tensor:
    """Return by how much the misfit falls (T,) if each of the candidates joins those chosen."""
    return torch.stack([_gain(one, chosen) for one in evidence]).sum(0)


def _gain(evidence: Evidence, chosen: Sequence[int]) -> Tensor:
    roots, basis = evidence.weights.sqrt(), _basis(evidence, chosen)
    squares = evidence.weights @ evidence.candidates.square().T
    inside = torch.stack([((roots * vector) @ evidence.candidates.T).square() for vector in basis]).sum(0) if chosen else 0
    new = squares - inside
    slopes = (roots * _outside(basis, roots * evidence.rows)) @ evidence.candidates.T
    informative = new > MIN_NEW_SHARE * squares
    return torch.where(informative, slopes.square() / torch.where(informative, new, 1), 0).sum(0)


def _misfit(evidence: Evidence, chosen: Sequence[int]) -> float:
    """Return the squared error of the best combinations of the chosen candidates, in units of the errors' variance."""
    return float(_outside(_basis(evidence, chosen), evidence.weights.sqrt() * evidence.rows).square().sum())


def _basis(evidence: Evidence, chosen: Sequence[int]) -> list[Tensor]:
    """Return orthonormal vectors (O, n) that span the chosen candidates in units of the errors, for each row.

    A candidate without a share of its own in a row is zero there. Normal equations would lose what few precise coordinates do
    not show: the weights of a row differ by up to ten orders of magnitude.
    """
    basis: list[Tensor] = []
    for candidate in evidence.candidates[list(chosen)]:
        scaled = evidence.weights.sqrt() * candidate
        new = _outside(basis, _outside(basis, scaled))  # twice, against rounding
        size = new.norm(dim=1, keepdim=True)
        informative = size.square() > MIN_NEW_SHARE * scaled.square().sum(1, keepdim=True)
        basis.append(torch.where(informative, new / torch.where(informative, size, 1), 0))
    return basis


def _outside(basis: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return the part of rows (O, n) that is orthogonal to a basis."""
    for vector in basis:
        rows = rows - (rows * vector).sum(1, keepdim=True) * vector
    return rows
