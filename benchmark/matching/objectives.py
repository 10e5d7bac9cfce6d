"""Distances between P guessed and P observed updates, and regularisers on P batches of images: each gives (P,), differentiable.

Every value of an update has P as its first dimension. Distances run over the parameters of `observed`, what crossed the wire:
what was withheld cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from benchmark.types import Update
from benchmark.vectors import level_width

Distance = Callable[[Update, Update], Tensor]
"""(P,) distances of the first update to the second, the observed one."""

NO_DIRECTION = 1e-5
"""Share of the largest layer's norm below which a layer's gradient is rounding."""

SMOOTH = 0.5
"""Differences below this share of Laplace noise's deviation count by their square."""

TINY = 1e-38
"""Least square of a norm that a cosine is divided by: the root of a zero has no derivative."""


def squared_distance(update: Update, observed: Update) -> Tensor:
    """sum || g - g* ||^2 over all parameters (Zhu et al. 2019, arXiv 1906.08935; their main.py)."""
    total: Tensor = _Squared.apply(*(update[name] for name in observed), *observed.values())
    return total


def cosine_distance(update: Update, observed: Update) -> Tensor:
    """1 - <g, g*> / (||g|| ||g*||), all parameters as one vector (after Geiping et al. 2020, arXiv 2003.14053)."""
    inner, own, other = _products(update, observed)
    return 1 - inner.sum(0) / (_root(own.sum(0)) * _root(other.sum(0)))


def layerwise_cosine_distance(update: Update, observed: Update) -> Tensor:
    """The mean over parameters of 1 - <g, g*> / (||g|| ||g*||): every layer counts alike, however small its gradient.

    Parameters whose observed gradient is zero but for rounding, as attention's key biases, have no direction and are left out.
    """
    inner, own, other = _products(update, observed)
    told = other.sqrt() > NO_DIRECTION * other.sqrt().amax(0)
    return torch.where(told, 1 - inner / (_root(own) * _root(other)), 0).sum(0) / told.sum(0)


def masked(distance: Distance) -> Distance:
    """The distance over the coordinates that were not pruned: those that are not zero in the observed update."""
    return lambda update, observed: distance({name: update[name] * (value != 0) for name, value in observed.items()}, observed)


def weighted(distance: Distance, weights: Callable[[Update], Update]) -> Distance:
    """The distance between w g and w g*, where `weights` gives w (P,) for each parameter of the observed update."""

    def scaled(update: Update, observed: Update) -> Tensor:
        w = {name: _spread(value, observed[name]) for name, value in weights(observed).items()}
        return distance(
            {name: update[name] * w[name] for name in observed}, {name: observed[name] * w[name] for name in observed}
        )

    return scaled


def by_norm(observed: Update) -> Update:
    """Weights that make every parameter count alike: one over the norm of its observed gradient, 0 where that is rounding."""
    norms = {name: value.flatten(1).norm(dim=1) for name, value in observed.items()}
    least = NO_DIRECTION * torch.stack(list(norms.values())).amax(0)
    return {name: torch.where(norm > least, 1 / norm, 0) for name, norm in norms.items()}


def clipped(distance: Distance, clip_norm: float) -> Distance:
    """The distance after the guessed update, all parameters as one vector, is clipped to that norm, as the client clips it."""

    def limited(update: Update, observed: Update) -> Tensor:
        norm = _root(torch.stack([update[name].flatten(1).square().sum(1) for name in observed]).sum(0))
        factor = (clip_norm / norm).clamp(max=1)
        return distance({name: update[name] * _spread(factor, update[name]) for name in observed}, observed)

    return limited


def gaussian_nll(noise_std: float, distance: Distance = squared_distance) -> Distance:
    """|| g - g* ||^2 / (2 sigma^2), the negative log-likelihood of an update with Gaussian noise of that deviation.

    It makes the distance commensurable with a regulariser that is a negative log-prior.
    """
    return lambda update, observed: distance(update, observed) / (2 * noise_std**2)


def profile_nll(distance: Distance = squared_distance) -> Distance:
    """N / 2 log || g - g* ||^2, the profile of `gaussian_nll` over sigma: at its likeliest, sigma^2 = || g - g* ||^2 / N.

    N counts the coordinates that were not pruned.
    """

    def profiled(update: Update, observed: Update) -> Tensor:
        return _told(observed) / 2 * distance(update, observed).clamp(min=TINY).log()

    return profiled


def laplace_distance(ratio: float) -> Distance:
    """sum (sqrt((g - g*)^2 + d^2) - d): of large differences the magnitude, as under Laplace noise, and smooth at 0.

    d is `SMOOTH` times the noise's likeliest deviation (`relative_noise`): L-BFGS needs a gradient that changes smoothly.
    """

    def smooth(update: Update, observed: Update) -> Tensor:
        d = SMOOTH * relative_noise(ratio, observed)
        each = [(update[name] - value).square() + _spread(d, value).square() for name, value in observed.items()]
        return torch.stack([(value.sqrt() - _spread(d, value)).flatten(1).sum(1) for value in each]).sum(0)

    return smooth


def outside_cells(bits: int) -> Distance:
    """The squared distance of g to the cells that were rounded to g*, tensor by tensor (`vectors.level_width`).

    Of one bit the cells are the signs, and the mean magnitude, which is known too, counts as every coordinate's error.
    """

    def to_level(g: Tensor, level: Tensor) -> Tensor:
        width = torch.stack([level_width(value, bits) for value in level])
        return ((g - level).abs() - _spread(width, g) / 2).clamp(min=0).square().flatten(1).sum(1)

    def to_sign(g: Tensor, level: Tensor) -> Tensor:
        size = g.abs().flatten(1).mean(1) - level.abs().flatten(1).amax(1)
        return (-g * level.sign()).clamp(min=0).square().flatten(1).sum(1) + g[0].numel() * size.square()

    one = to_sign if bits == 1 else to_level
    return lambda update, observed: torch.stack([one(update[name], value) for name, value in observed.items()]).sum(0)


def relative_noise(ratio: float, observed: Update) -> Tensor:
    """(P,): the likeliest deviation of noise that is `ratio` times as large as the update it was added to."""
    mean_square = torch.stack([value.flatten(1).square().sum(1) for value in observed.values()]).sum(0) / _told(observed)
    return mean_square.sqrt() * ratio / math.sqrt(1 + ratio**2)


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation of (P, ..., H, W): the mean absolute difference of neighbours, down plus across; (P,)."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + across


class _Squared(Function):
    """|| g - g* ||^2 for all of g, then all of g*, in fewer passes than autograd composes: updates are large and met once."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        half = len(values) // 2
        differences = [g - observed for g, observed in zip(values[:half], values[half:], strict=True)]
        ctx.save_for_backward(*differences)
        return torch.stack([difference.flatten(1).norm(dim=1) for difference in differences]).square().sum(0)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [_spread(2 * c, difference) * difference for difference in ctx.saved_tensors]
        return *gradients, *[None] * len(gradients)


def _products(update: Update, observed: Update) -> tuple[Tensor, Tensor, Tensor]:
    """<g, g*>, ||g||^2 and ||g*||^2 of each parameter, one row for each, (parameters, P)."""
    pairs = [(update[name].flatten(1), value.flatten(1)) for name, value in observed.items()]
    products = [((g * other).sum(1), g.square().sum(1), other.square().sum(1)) for g, other in pairs]
    inner, own, others = (torch.stack(column) for column in zip(*products, strict=True))
    return inner, own, others


def _told(observed: Update) -> Tensor:
    """(P,): the coordinates that are not zero; those that were pruned tell nothing."""
    return torch.stack([(value != 0).flatten(1).sum(1) for value in observed.values()]).sum(0).clamp(min=1)


def _root(square: Tensor) -> Tensor:
    return square.clamp(min=TINY).sqrt()


def _spread(weights: Tensor, like: Tensor) -> Tensor:
    """(P,) -> (P, 1, ...) with the dimensions of `like`."""
    return weights.view(-1, *[1] * (like.dim() - 1))
