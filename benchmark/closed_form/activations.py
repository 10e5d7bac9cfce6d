"""Computes the input of a convolution from its weight gradient, by linear algebra alone. This method is ours.

The weight gradient of a convolution is a product G = D P. The matrix P (N, C K^2) holds the patches of the input, one row for
each of the N positions of the output. The matrix D (O, N) holds the gradient of the loss in the output, O being the number of
output channels. Suppose that N <= O and that D has full rank. Then the rows of G span the rows of P, whatever D is.
So P = M V, where V is an orthonormal basis of that span, and M (N, N) is an unknown invertible matrix.

Neighbouring patches overlap, and this determines M. Let V_o be the columns of V at offset o of the kernel, and V_0 the columns
at its centre. Let T_o shift the positions by o, with zeros beyond the border. For a stride of 1 the input is a = M V_0.
The columns at the other offsets are shifted copies of the input: T_o M V_0 = M V_o for every o. These equations are linear
in M. Two solutions differ by a matrix that commutes with every shift. Only multiples of the identity commute with every shift.
So the equations determine the input up to one factor. This is proven for inputs of rank N. With fewer input channels than
positions there is no proof. In our trials the result was then correct, or the method refused the gradient.

R-CONV (arXiv 2406.04227, its abstract) also solves for the input of a convolution from its gradients. R-GAP (arXiv 2010.07733,
its abstract) solves for the input from the gradients of a whole network.

The method needs a single image. With B images, M is determined only up to an invertible mixture of the images. With several
images, or with more positions than output channels, the rows of G still lie in the span of P. This restricts the input as long
as the span of P is not the whole space (see `row_span`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.closed_form.sites import is_signal, spans_patches

NEIGHBOUR_OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
"""Offsets (y, x) of the entries of a 3 x 3 kernel from its centre, without the centre itself."""

ROUNDING_NOISE = 1e-7
"""Smallest noise assumed in a float32 gradient, as a share of its largest singular value."""

MIN_SIGNAL_TO_NOISE = 3.0
"""Smallest accepted ratio of a span's least singular value to the noise."""

MAX_MISMATCH = 1e-5
"""Mismatch from which on we conclude that no input has these overlaps."""

MAX_ITERATIONS, RESIDUAL_TOLERANCE = 2000, 1e-10
"""Largest number of conjugate gradient steps, and the share of the first residual's norm at which they stop."""


@dataclass(frozen=True, eq=False)
class Activation:
    """The input of a convolution, computed from its weight gradient.

    Attributes:
        value: (C, H, W) float32, the input divided by its norm; the sign is arbitrary.
        mismatch: mean squared violation of the patches' overlaps, as a share of the violation by random patches.
    """

    value: Tensor
    mismatch: float


def row_span(gradient: Tensor) -> Tensor:
    """Return an orthonormal basis (R, C K^2) of the row span of a weight gradient (O, C, K, K), in float64.

    Directions that rounding errors explain are left out. The span lies in the span of the input's patches, for any number of
    patches and any gradient of the output.
    """
    sigma: Tensor
    basis: Tensor
    _, sigma, basis = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
    return basis[is_signal(sigma)]


def patch_span(gradient: Tensor, positions: int) -> Tensor | None:
    """Return an orthonormal basis (N, C K^2) of the span of the N patches behind a weight gradient (O, C, K, K), in float64.

    Args:
        gradient: the weight gradient.
        positions: N, the number of positions of the convolution's output.

    Returns:
        The basis. None where the gradient does not determine it: there are fewer output channels than positions, the patches
        fill the whole space, or the noise is too strong.
    """
    rows = gradient.flatten(1).double()
    if not spans_patches(positions, *rows.shape):
        return None
    _, sigma, basis = torch.linalg.svd(rows, full_matrices=False)
    next_sigma = sigma[positions] if len(sigma) > positions else sigma.new_zeros(())
    noise = torch.maximum(next_sigma, ROUNDING_NOISE * sigma[0])
    return basis[:positions] if sigma[positions - 1] > MIN_SIGNAL_TO_NOISE * noise else None


def read_activation(span: Tensor, height: int, width: int) -> Activation | None:
    """Return the input of a 3 x 3 convolution of stride 1 and padding 1 from the span of its patches.

    Args:
        span: (N, 9 C) float64, an orthonormal basis of the span of the N = height x width patches.
        height: height of the input and of the output.
        width: width of the input and of the output.

    Returns:
        The input. None where no input fits the span, e.g. because the gradient is noisy, or where several inputs nearly fit.
    """
    positions = height * width
    columns = span.view(positions, -1, 3, 3)
    centre = columns[:, :, 1, 1].contiguous()
    others = torch.stack([columns[:, :, 1 + y, 1 + x] for y, x in NEIGHBOUR_OFFSETS])

    def overlaps(mixture: Tensor) -> Tensor:
        """Apply the operator of the normal equations of T_o M V_0 = M V_o to M."""
        violations = _shifts(mixture, height, width) @ centre - mixture @ others
        shifted_back = _shifts_back(violations @ centre.T, height, width)
        return shifted_back - (violations @ others.mT).sum(0)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(positions, positions, generator=generator, dtype=torch.float64).to(span.device)
    solution = _conjugate_gradients(overlaps, overlaps(start))
    if solution is None:
        return None
    mixture = start - solution  # the component of the start that violates no overlap
    typical = (start * overlaps(start)).sum() / start.square().sum()
    mismatch = float((mixture * overlaps(mixture)).sum() / mixture.square().sum() / typical)
    if not mismatch < MAX_MISMATCH:
        return None
    value = (mixture @ centre).T.reshape(-1, height, width)
    return Activation((value / value.norm()).float(), mismatch)


def _shifts(rows: Tensor, height: int, width: int) -> Tensor:
    """Shift the rows (N, n) of all positions by each of the 8 offsets, with zeros beyond the border; return (8, N, n)."""
    padded = F.pad(rows.view(height, width, -1), (0, 0, 1, 1, 1, 1))
    return torch.stack([padded[1 + y : 1 + y + height, 1 + x : 1 + x + width].flatten(0, 1) for y, x in NEIGHBOUR_OFFSETS])


def _shifts_back(moved: Tensor, height: int, width: int) -> Tensor:
    """Apply the transpose of `_shifts`, and return (N, n)."""
    shifted_back = moved.new_zeros(height + 2, width + 2, moved.shape[-1])
    for (y, x), rows in zip(NEIGHBOUR_OFFSETS, moved, strict=True):
        shifted_back[1 + y : 1 + y + height, 1 + x : 1 + x + width] += rows.view(height, width, -1)
    return shifted_back[1:-1, 1:-1].flatten(0, 1)


def _conjugate_gradients(operator: Callable[[Tensor], Tensor], target: Tensor) -> Tensor | None:
    """Return the solution of least norm of a positive semidefinite system, or None if conjugate gradients do not converge."""
    solution, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum()
    goal = RESIDUAL_TOLERANCE**2 * square
    for _ in range(MAX_ITERATIONS):
        if square <= goal:
            return solution
        product = operator(direction)
        step = square / (direction * product).sum()
        solution += step * direction
        residual -= step * product
        square, previous = residual.square().sum(), square
        direction = residual + square / previous * direction
    return None
