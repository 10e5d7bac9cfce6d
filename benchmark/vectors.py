"""An update as one vector: its length, what is kept of it, and noise on every coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmark.types import Update

Draw = Callable[[Sequence[int], torch.Generator], Tensor]
"""Independent values of mean 0 and variance 1."""


def norm(update: Update) -> float:
    """The l2 norm over all coordinates."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))


def size(update: Update) -> int:
    """The number of coordinates."""
    return sum(value.numel() for value in update.values())


def scaled_to(update: Update, longest: float) -> Update:
    """The update, scaled down to that l2 norm where it is longer."""
    factor = longest / max(norm(update), longest)
    return {name: value * factor for name, value in update.items()}


def keep(update: Update, scores: Tensor, share: float) -> Update:
    """The update with 0 for all but the max(1, round(share * n)) of its n coordinates that have the highest `scores` (n,)."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.topk(max(1, round(share * len(scores)))).indices.cpu()] = True
    masks = torch.split(kept, [value.numel() for value in update.values()])
    return {
        name: torch.where(mask.view_as(value).to(value.device), value, 0.0)
        for (name, value), mask in zip(update.items(), masks, strict=True)
    }


def add_noise(update: Update, std: float, draw: Draw, generator: torch.Generator) -> Update:
    """The update with `std` times a fresh draw on each coordinate."""
    return {name: value + std * draw(value.shape, generator).to(value) for name, value in update.items()}


def add_relative_noise(update: Update, ratio: float, draw: Draw, generator: torch.Generator) -> Update:
    """The update with noise whose root mean square is `ratio` times its own."""
    return add_noise(update, ratio * norm(update) / math.sqrt(size(update)), draw, generator)


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """N(0, 1), drawn on the CPU."""
    return torch.randn(shape, generator=generator)


def laplace(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Laplace's distribution with mean 0 and variance 1, drawn on the CPU."""
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    return sign * torch.empty(shape).exponential_(generator=generator) / math.sqrt(2)


def level_width(value: Tensor, bits: int) -> Tensor:
    """A scalar: the distance of 2^bits - 1 even levels in [-m, m], m the largest magnitude; the same after rounding to them."""
    width: Tensor = value.abs().amax() / (2 ** (bits - 1) - 1)
    return width
