"""Operations on an update as one vector: norm, clipping, pruning, noise and quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmark.types import Update

Draw = Callable[[Sequence[int], torch.Generator], Tensor]
"""A function that draws independent values of mean 0 and variance 1, given a shape and a generator."""


REACHED = 0.999
"""Share of a limit from which a value counts as clipped to it. The rounding of a message moves clipped values a little."""


def norm(update: Update) -> float:
    """Return the l2 norm over all coordinates."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))


def size(update: Update) -> int:
    """Return the number of coordinates."""
    return sum(value.numel() for value in update.values())


def clip_to_norm(update: Update, max_norm: float) -> Update:
    """Return the update, scaled down to the l2 norm `max_norm` if its norm is larger."""
    factor = max_norm / max(norm(update), max_norm)
    return {name: value * factor for name, value in update.items()}


def keep_highest(update: Update, scores: Tensor, share: float) -> Update:
    """Return the update with only the coordinates that have the highest `scores` (n,); all others are set to 0.

    Of n coordinates, max(1, round(share * n)) are kept.
    """
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.topk(max(1, round(share * len(scores)))).indices.cpu()] = True
    masks = torch.split(kept, [value.numel() for value in update.values()])
    return {
        name: torch.where(mask.view_as(value).to(value.device), value, 0.0)
        for (name, value), mask in zip(update.items(), masks, strict=True)
    }


def add_noise(update: Update, std: float, draw: Draw, generator: torch.Generator) -> Update:
    """Return the update plus `std` times a fresh draw on each coordinate."""
    return {name: value + std * draw(value.shape, generator).to(value) for name, value in update.items()}


def add_relative_noise(update: Update, ratio: float, draw: Draw, generator: torch.Generator) -> Update:
    """Return the update plus noise whose standard deviation is `ratio` times the root mean square of the update."""
    return add_noise(update, ratio * norm(update) / math.sqrt(size(update)), draw, generator)


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw values from N(0, 1) on the CPU."""
    return torch.randn(shape, generator=generator)


def laplace(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw values from the Laplace distribution with mean 0 and variance 1 on the CPU."""
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    return sign * torch.empty(shape).exponential_(generator=generator) / math.sqrt(2)


def level_width(value: Tensor, bits: int) -> Tensor:
    """Return the distance of 2^bits - 1 evenly spaced levels in [-m, m], as a scalar; m is the largest magnitude in `value`.

    The distance stays the same after `value` is rounded to the levels.
    """
    width: Tensor = value.abs().amax() / (2 ** (bits - 1) - 1)
    return width
