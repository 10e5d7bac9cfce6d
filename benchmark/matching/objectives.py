"""Distances between P guessed and P observed updates, and regularisers on P batches of images. All return (P,), differentiable.

Every tensor of an update has P as its first dimension. Distances use the parameters of `observed`, which are the transmitted
ones. Withheld parameters cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from benchmark.types import Update
from benchmark.vectors import REACHED, level_width

Distance = Callable[[Update, Update], Tensor]
"""A function that returns distances (P,) between the first update, the guess, and the second, the observed update."""

ROUNDING_SHARE = 1e-5
"""A layer's gradient counts as rounding below this share of the largest layer's norm."""

SMOOTHING_SHARE = 0.5
"""Differences below this share of the standard deviation of Laplace noise count by their square."""

MIN_SQUARED_NORM = 1e-38
"""Minimum of a squared norm before its root or logarithm is taken: neither has a derivative at zero."""


def squared_distance(update: Update, observed: Update) -> Tensor:
    """Return sum || g - g* ||^2 over all parameters (Zhu et al. 2019, arXiv 1906.08935; their main.py)."""
    total: Tensor = _Squared.apply(*(update[name] for name in observed), *observed.values())
    return total


def cosine_distance(update: Update, observed: Update) -> Tensor:
    """Return 1 - <g, g*> / (||g|| ||g*||), with all parameters as one vector (after Geiping et al. 2020, arXiv 2003.14053)."""
    inner, own, other = _products(update, observed)
    return 1 - inner.sum(0) / (_root(own.sum(0)) * _root(other.sum(0)))


def layerwise_cosine_distance(update: Update, observed: Update) -> Tensor:
    """Return the mean over parameters of 1 - <g, g*> / (||g|| ||g*||).

    Every parameter counts equally, however small its gradient. The mean leaves out parameters whose observed gradient is zero
    up to rounding, such as the key biases of attention: they have no direction.
    """
    inner, own, other = _products(update, observed)
    has_direction = other.sqrt() > ROUNDING_SHARE * other.sqrt().amax(0)
    return torch.where(has_direction, 1 - inner / (_root(own) * _root(other)), 0).sum(0) / has_direction.sum(0)


def masked(distance: Distance) -> Distance:
    """Return the distance over the coordinates that were not pruned: those that are not zero in the observed update."""
    return lambda update, observed: distance({name: update[name] * (value != 0) for name, value in observed.items()}, observed)


def limited(distance: Distance, limit: float) -> Distance:
    """Return the distance for an observed update whose coordinates were clipped to +-limit.

    A clipped coordinate is a bound: a guess beyond it, on the same side, agrees with it.
    """

    def one_sided(update: Update, observed: Update) -> Tensor:
        agreeing = {}
        for name, value in observed.items():
            beyond = (value.abs() >= REACHED * limit) & (update[name] * value.sign() > value.abs())
            agreeing[name] = torch.where(beyond, value, update[name])
        return distance(agreeing, observed)

    return one_sided


def clamped(distance: Distance, limit: float) -> Distance:
    """Return the distance after clipping each coordinate of the guessed update to +-limit, as the client does.

    Under noise the observed update does not show which coordinates were clipped, as `limited` needs it.
    """
    return lambda update, observed: distance({name: update[name].clamp(-limit, limit) for name in observed}, observed)


def weighted(distance: Distance, weights: Callable[[Update], Update]) -> Distance:
    """Return the distance between w g and w g*, where `weights` gives w (P,) for each parameter of the observed update."""

    def scaled(update: Update, observed: Update) -> Tensor:
        w = {name: _broadcast(value, observed[name]) for name, value in weights(observed).items()}
        return distance(
            {name: update[name] * w[name] for name in observed}, {name: observed[name] * w[name] for name in observed}
        )

    return scaled


def inverse_norms(observed: Update) -> Update:
    """Return weights that make every parameter count equally: 1 / (norm of its observed gradient), or 0 for rounding."""
    norms = {name: value.flatten(1).norm(dim=1) for name, value in observed.items()}
    least = ROUNDING_SHARE * torch.stack(list(norms.values())).amax(0)
    return {name: torch.where(norm > least, 1 / norm, 0) for name, norm in norms.items()}


def clipped(distance: Distance, clip_norm: float) -> Distance:
    """Return the distance after clipping the guessed update, all parameters as one vector, to that norm, as the client does."""

    def limited(update: Update, observed: Update) -> Tensor:
        norm = _root(torch.stack([update[name].flatten(1).square().sum(1) for name in observed]).sum(0))
        factor = (clip_norm / norm).clamp(max=1)
        return distance({name: update[name] * _broadcast(factor, update[name]) for name in observed}, observed)

    return limited


def gaussian_nll(noise_std: float, distance: Distance = squared_distance) -> Distance:
    """Return || g - g* ||^2 / (2 sigma^2), the negative log-likelihood under Gaussian noise of standard deviation sigma.

    On this scale a negative log-prior can be added to the distance as a regulariser.
    """
    return lambda update, observed: distance(update, observed) / (2 * noise_std**2)


def profile_nll(distance: Distance = squared_distance) -> Distance:
    """Return N / 2 log || g - g* ||^2, the profile of `gaussian_nll` over sigma.

    It uses the most likely sigma: sigma^2 = || g - g* ||^2 / N. N counts the coordinates that were not pruned.
    """

    def profiled(update: Update, observed: Update) -> Tensor:
        return _nonzero_count(observed) / 2 * distance(update, observed).clamp(min=MIN_SQUARED_NORM).log()

    return profiled


def laplace_distance(std: Callable[[Update], Tensor]) -> Distance:
    """Return sum (sqrt((g - g*)^2 + d^2) - d): close to the absolute value for large differences, as under Laplace noise.

    It is smooth at 0, since L-BFGS needs a gradient that changes smoothly. d is `SMOOTHING_SHARE` times the standard deviation
    of the noise, which `std` returns, (P,) or (1,), for an observed update.
    """

    def smooth(update: Update, observed: Update) -> Tensor:
        d = SMOOTHING_SHARE * std(observed)
        each = [(update[name] - value).square() + _broadcast(d, value).square() for name, value in observed.items()]
        return torch.stack([(value.sqrt() - _broadcast(d, value)).flatten(1).sum(1) for value in each]).sum(0)

    return smooth


def distance_to_cells(bits: int) -> Distance:
    """Return the squared distance from g to the cells that are rounded to g*, tensor by tensor (`vectors.level_width`).

    With one bit the cells are the signs. The mean magnitude is known too, and its error counts for every coordinate.
    """

    def to_level(g: Tensor, level: Tensor) -> Tensor:
        width = torch.stack([level_width(value, bits) for value in level])
        return ((g - level).abs() - _broadcast(width, g) / 2).clamp(min=0).square().flatten(1).sum(1)

    def to_sign(g: Tensor, level: Tensor) -> Tensor:
        size = g.abs().flatten(1).mean(1) - level.abs().flatten(1).amax(1)
        return (-g * level.sign()).clamp(min=0).square().flatten(1).sum(1) + g[0].numel() * size.square()

    to_cell = to_sign if bits == 1 else to_level
    return lambda update, observed: torch.stack([to_cell(update[name], value) for name, value in observed.items()]).sum(0)


def relative_noise(ratio: float, observed: Update) -> Tensor:
    """Return the most likely standard deviation (P,) of noise that is `ratio` times as large as the update it was added to."""
    square = torch.stack([value.flatten(1).square().sum(1) for value in observed.values()]).sum(0)
    return (square / _nonzero_count(observed)).sqrt() * ratio / math.sqrt(1 + ratio**2)


def total_variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation (P,) of images (P, ..., H, W).

    It is the mean absolute difference of neighbours, down plus across.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + across


class _Squared(Function):
    """|| g - g* ||^2, with all of g passed first, then all of g*.

    It takes fewer passes than autograd would: updates are large, and each is used only once.
    """

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        half = len(values) // 2
        differences = [g - observed for g, observed in zip(values[:half], values[half:], strict=True)]
        ctx.save_for_backward(*differences)
        return torch.stack([difference.flatten(1).norm(dim=1) for difference in differences]).square().sum(0)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [_broadcast(2 * c, difference) * difference for difference in ctx.saved_tensors]
        return *gradients, *[None] * len(gradients)


def _products(update: Update, observed: Update) -> tuple[Tensor, Tensor, Tensor]:
    """Return <g, g*>, ||g||^2 and ||g*||^2 of each parameter, (parameters, P) each."""
    pairs = [(update[name].flatten(1), value.flatten(1)) for name, value in observed.items()]
    products = [((g * other).sum(1), g.square().sum(1), other.square().sum(1)) for g, other in pairs]
    inner, own, others = (torch.stack(column) for column in zip(*products, strict=True))
    return inner, own, others


def _nonzero_count(observed: Update) -> Tensor:
    """Return the number (P,) of nonzero coordinates; pruned ones carry no information."""
    return torch.stack([(value != 0).flatten(1).sum(1) for value in observed.values()]).sum(0).clamp(min=1)


def _root(square: Tensor) -> Tensor:
    return square.clamp(min=MIN_SQUARED_NORM).sqrt()


def _broadcast(weights: Tensor, like: Tensor) -> Tensor:
    """Reshape (P,) to (P, 1, ...) with the dimensions of `like`."""
    return weights.view(-1, *[1] * (like.dim() - 1))
