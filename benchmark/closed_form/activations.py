"""What a convolution saw, read from its weight gradient. Ours.

A convolution's weight gradient is G = D P: P (N, C K^2) holds the patches of its input, one row for each of the N positions of
its output, and D (O, N) what flows back to them. Where the output has no more positions than channels and D has full rank, the
rows of G span the rows of P, whatever D is: P = M V for an orthonormal basis V of that span and some invertible M (N, N).

Neighbouring patches overlap, which fixes M. Let V_o be the columns of V that belong to the kernel's offset o, V_0 those of its
centre, and T_o the shift of positions by o with zeros beyond the border. For a stride of 1 the input is a = M V_0, and its
shifted copies are the other columns: T_o M V_0 = M V_o for every o. That is linear in M. Two solutions differ by a matrix that
commutes with every shift, and only multiples of the identity do: the input is read up to one factor, by linear algebra alone.
That is proven where the input has rank N; with fewer channels than positions it held in what was tried, or was refused.

R-CONV (arXiv 2406.04227, its abstract) also solves for the input of a convolution from its gradients, R-GAP (arXiv 2010.07733,
its abstract) for those of a whole network.

It holds for one image; with B images M is found up to an invertible mixture of them. Where the patches are more than the
channels, or those of several images, the rows of G still lie in the span of P, as long as that is not the whole space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
"""Of a 3 x 3 kernel's columns but its centre."""

ROUNDING = 1e-7
"""Least noise in a gradient in float32, as a share of its largest singular value."""

ABOVE_NOISE = 3.0
"""The least singular value of a span must be this many times the noise."""

ABOVE_ROUNDING = 1e-6
"""Share of the largest singular value above which a direction is told."""

BELIEVED = 1e-5
"""Mismatch from which on no input fits the overlaps."""

ITERATIONS, ACCURACY = 2000, 1e-10
"""Most steps of conjugate gradients, and the share of the residual at which they stop."""


@dataclass(frozen=True, eq=False)
class Activation:
    """A convolution's input as read from its gradient.

    Attributes:
        value: (C, H, W) float32 of norm 1, up to its sign.
        mismatch: mean squared violation of the patches' overlaps, as a share of that of random patches.
    """

    value: Tensor
    mismatch: float


def row_span(gradient: Tensor) -> Tensor:
    """An orthonormal basis (R, C K^2) of the rows of a weight gradient (O, C, K, K), in float64: those above rounding.

    The patches of the input span it, however many they are, and whatever flows back.
    """
    sigma: Tensor
    spanned: Tensor
    _, sigma, spanned = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
    return spanned[sigma > ABOVE_ROUNDING * sigma[0]]


def patch_span(gradient: Tensor, positions: int) -> Tensor | None:
    """An orthonormal basis (N, C K^2) of the span of the N patches behind a weight gradient (O, C, K, K), in float64.

    None where the gradient does not tell it: fewer channels than positions, patches that fill the space, or too much noise.
    """
    rows = gradient.flatten(1).double()
    if positions > len(rows) or positions >= rows.shape[1]:
        return None
    _, sigma, spanned = torch.linalg.svd(rows, full_matrices=False)
    beyond = sigma[positions] if len(sigma) > positions else sigma.new_zeros(())
    noise = torch.maximum(beyond, ROUNDING * sigma[0])
    return spanned[:positions] if sigma[positions - 1] > ABOVE_NOISE * noise else None


def read_activation(span: Tensor, height: int, width: int) -> Activation | None:
    """The input of a 3 x 3 convolution of stride 1 and padding 1, from the span (N, 9 C) of its N = height x width patches.

    None where no input fits, the span being that of something else, e.g. of a gradient with noise, or where several nearly do.
    """
    positions = height * width
    columns = span.view(positions, -1, 3, 3)
    centre = columns[:, :, 1, 1].contiguous()
    others = torch.stack([columns[:, :, 1 + y, 1 + x] for y, x in OFFSETS])

    def overlaps(mixture: Tensor) -> Tensor:
        """Of the normal equations of T_o M V_0 = M V_o: the operator on M."""
        violations = _shifts(mixture, height, width) @ centre - mixture @ others
        back = _shifts_back(violations @ centre.T, height, width)
        return back - (violations @ others.mT).sum(0)

    draw = torch.Generator().manual_seed(0)
    start = torch.randn(positions, positions, generator=draw, dtype=torch.float64).to(span.device)
    solved = _solved(overlaps, overlaps(start))
    if solved is None:
        return None
    mixture = start - solved  # what conjugate gradients cannot reach is where the overlaps vanish
    typical = (start * overlaps(start)).sum() / start.square().sum()
    mismatch = float((mixture * overlaps(mixture)).sum() / mixture.square().sum() / typical)
    if not mismatch < BELIEVED:
        return None
    value = (mixture @ centre).T.reshape(-1, height, width)
    return Activation((value / value.norm()).float(), mismatch)


def _shifts(rows: Tensor, height: int, width: int) -> Tensor:
    """(8, N, n): rows (N, n) of positions, moved by each offset, with zeros from beyond the border."""
    padded = F.pad(rows.view(height, width, -1), (0, 0, 1, 1, 1, 1))
    return torch.stack([padded[1 + y : 1 + y + height, 1 + x : 1 + x + width].flatten(0, 1) for y, x in OFFSETS])


def _shifts_back(moved: Tensor, height: int, width: int) -> Tensor:
    """(N, n): the transpose of `_shifts`."""
    back = moved.new_zeros(height + 2, width + 2, moved.shape[-1])
    for (y, x), rows in zip(OFFSETS, moved, strict=True):
        back[1 + y : 1 + y + height, 1 + x : 1 + x + width] += rows.view(height, width, -1)
    return back[1:-1, 1:-1].flatten(0, 1)


def _solved(operator: Callable[[Tensor], Tensor], target: Tensor) -> Tensor | None:
    """The least solution of a positive semidefinite system by conjugate gradients, None where they do not arrive."""
    solution, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum()
    goal = ACCURACY**2 * square
    for _ in range(ITERATIONS):
        if square <= goal:
            return solution
        image = operator(direction)
        step = square / (direction * image).sum()
        solution += step * direction
        residual -= step * image
        square, before = residual.square().sum(), square
        direction = residual + square / before * direction
    return None
