"""Completes and denoises weight gradients of low rank, before any search.

The weight gradient of a layer is a product G = D P. The rows of P (N, C K) are the patches of the layer's input, and N counts
the output positions of all images. So G has rank at most N, and what is missing in G follows from the rest, if enough of it is
known.

`shrunk` removes noise of known size by the rank alone. It is the optimal shrinkage of singular values in Frobenius norm of
Gavish and Donoho (IEEE Trans. Information Theory 2017, "Optimal shrinkage of singular values").

`completed` fits D P to the known coordinates by alternating least squares. In a 3 x 3 convolution of stride 1 the patches
overlap: P repeats the entries of the input, so it has nearly nine times fewer unknowns than a general matrix. The fit searches
the input itself. With one image at 4x4 and a layer of 256 to 256 channels, rank alone needs more than 10% of the coordinates,
and this needs 2%. It also leaves less noise. Combining low rank and overlaps in this way is ours. A twentieth of the known
coordinates takes no part in the fit and shows its error. If the largest coordinates were kept, this is the error of large ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.closed_form.losses import Measurement

MAX_POSITIONS = 64
"""Largest number of positions of all images in a fit. Its time grows with the third power: 128 would take minutes on a core."""

ROUNDS, STARTS = 150, 2
"""Rounds of alternating least squares, and random starts that are tried."""

HELD_OUT_SHARE = 0.05
"""Share of the known coordinates that show the error of a fit."""

FIRST_RIDGE, RIDGE_DECAY, LAST_RIDGE = 3.0, 0.85, 1e-7
"""The ridge of the least squares, as a share of the mean diagonal of the rows' Gram matrices.

It starts large, falls from round to round, and stays at its last value. Without it a fit to few coordinates ends far from the
truth: at the start it explains them by chance. The last value is for rows with fewer known coordinates than unknowns.
"""

CONVERGED = 1e-6
"""A fit ends at this share of the norm of the known coordinates: float32 does not fit better."""

STALLED = 1e-5
"""A fit ends if a round at the last ridge lowers the misfit by less than this share."""

CERTAINTY = 3.0
"""Standard deviations that are added to the measured error of a fit, against luck."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A restored gradient.

    Attributes:
        values: the gradient, of the shape of the transmitted one.
        error: an upper estimate of its squared error as a share of its square.
    """

    values: Tensor
    error: float


def overlapping(height: int, width: int) -> Tensor:
    """Return the table (9, N, N) of a 3 x 3 convolution of stride 1 and padding 1 with N = height x width positions.

    Entry (k, n, q) is 1 if the patch at output position n holds the input position q at place k of the kernel.
    """
    positions = height * width
    inputs = torch.eye(positions).view(positions, 1, height, width)
    return F.unfold(inputs, 3, padding=1).permute(1, 2, 0).contiguous()


def separate(positions: int) -> Tensor:
    """Return the table (1, N, N) of a layer whose patches do not overlap: the columns of its gradient are channels."""
    return torch.eye(positions)[None]


def shrunk(measurement: Measurement, rank: int) -> Estimate | None:
    """Return a gradient (O, ...) of at most a given rank without its noise, from measurements of all coordinates.

    The formula is for white noise, and holds in the limit of large matrices. None if no singular value stands out. The
    measurements must have a positive error.
    """
    rows = measurement.values.flatten(1).double()
    short, long = sorted(rows.shape)
    beta, unit = short / long, measurement.std * math.sqrt(long)
    left, sigma, right = torch.linalg.svd(rows, full_matrices=False)
    y = sigma[:rank] / unit
    root = ((y.square() - beta - 1).square() - 4 * beta).clamp(min=0).sqrt()
    visible = y > 1 + math.sqrt(beta)
    kept = torch.where(visible, root / y, 0)
    if not visible.any():
        return None
    true = torch.where(
        visible, (y.square() - beta - 1 + root) / 2, math.sqrt(beta)
    )  # squares of the singular values below noise
    error = float((true - kept.square()).sum() / true.sum())
    values = (left[:, :rank] * (kept * unit)) @ right[:rank]
    return Estimate(values.to(measurement.values).view_as(measurement.values), error)


def completed(measurement: Measurement, table: Tensor, images: int, max_error: float) -> Estimate | None:
    """Return a gradient (O, ...) fitted to its known coordinates.

    Args:
        measurement: the known coordinates and their error.
        table: (K, N, Q), how the patches at the N output positions of an image repeat the Q positions of an input channel.
        images: number of images behind the gradient.
        max_error: the error up to which a fit is accepted.

    Returns:
        The first fit whose error on held-out coordinates is at most `max_error`. None if there is none, if there are more
        unknowns than known coordinates, or more positions than `MAX_POSITIONS`.
    """
    shape = measurement.values.shape
    values, known = (value.reshape(len(value), -1, len(table)) for value in (measurement.values, measurement.known))
    outputs, channels, _ = values.shape
    count, positions = int(known.sum()), images * table.shape[1]
    if positions > MAX_POSITIONS or count * (1 - HELD_OUT_SHARE) <= (outputs + channels) * positions:
        return None
    size = values[known].square().mean().sqrt()
    for seed in range(STARTS):
        generator = torch.Generator().manual_seed(seed)
        held = known & (torch.rand(values.shape, generator=generator) < HELD_OUT_SHARE).to(known.device)
        start = torch.randn(channels, images * table.shape[2], generator=generator).to(values)
        fitted = size * _fit(values / size, known & ~held, table.to(values), start)
        error = _error(fitted[held], values[held], measurement.noise)
        if error <= max_error:
            return Estimate(fitted.reshape(shape), error)
    return None


def _error(fitted: Tensor, values: Tensor, noise: float) -> float:
    """Return an upper estimate of the squared error of held-out coordinates as a share of their square, without their noise."""
    if len(values) < 2:
        return math.inf
    squares = (fitted - values).double().square()
    luck = CERTAINTY * float(squares.std()) / math.sqrt(len(values))
    signal, excess = (float(each.mean()) - noise**2 for each in (values.double().square(), squares))
    if signal <= luck or excess + luck <= 0:  # the stated error is larger than the true one, so neither can be judged
        return math.inf
    return (excess + luck) / signal


def _fit(values: Tensor, known: Tensor, table: Tensor, inputs: Tensor) -> Tensor:
    """Return D P (O, C, K) fitted to the known values, from inputs (C, images x Q).

    Each round solves for D and then for the inputs. It starts beyond the last inputs, in the direction of their last move, and
    at the last ones if that did not help (Nesterov's acceleration with restarts).
    """
    outputs, channels, kernel = values.shape
    images = inputs.shape[1] // table.shape[2]
    targets, weights = (values * known).flatten(1), known.to(values).flatten(1)
    turned, turned_weights = (each.view(outputs, channels, kernel).transpose(0, 1).flatten(1) for each in (targets, weights))
    best, least, since, guess, ridge = torch.zeros_like(turned), math.inf, 0, inputs, FIRST_RIDGE
    for _ in range(ROUNDS):
        ridge = max(RIDGE_DECAY * ridge, LAST_RIDGE)
        patches = torch.einsum("cbq,knq->ckbn", guess.view(channels, images, -1), table).flatten(2).flatten(0, 1)
        factors = _least_squares(targets, weights, patches, ridge)
        factors = factors / factors.square().mean().sqrt()
        spread = torch.einsum("obn,knq->okbq", factors.view(outputs, images, -1), table).flatten(2).flatten(0, 1)
        found = _least_squares(turned, turned_weights, spread, ridge)
        fitted = found @ spread.T
        misfit = float(((fitted - turned) * turned_weights).norm() / turned.norm())
        if not misfit < least:
            if since == 0 and ridge == LAST_RIDGE:
                break
            since, guess = 0, inputs
            continue
        stalled = ridge == LAST_RIDGE and least - misfit < STALLED * misfit
        inputs, previous, best, least, since = found, inputs, fitted, misfit, since + 1
        if misfit < CONVERGED or stalled:
            break
        guess = inputs + (since - 1) / (since + 2) * (inputs - previous)
    return best.view(channels, outputs, kernel).transpose(0, 1)


def _least_squares(values: Tensor, weights: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """Return x (m, r) that minimises sum_j weights_ij (values_ij - x_i . basis_j)^2 plus a ridge, for a basis (n, r)."""
    rank = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None, :]).flatten(1)
    gram = (weights @ products).view(-1, rank, rank)
    ridge = ridge * float(gram.diagonal(dim1=1, dim2=2).mean())
    solved: Tensor = torch.linalg.solve(gram + ridge * torch.eye(rank).to(gram), ((weights * values) @ basis)[..., None])
    return solved[..., 0]
