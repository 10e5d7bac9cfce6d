"""Distances between two updates, and regularisers on images: scalars, differentiable in the first argument.

Distances run over the parameters of `seen`, the update that crossed the wire: what was withheld cannot be compared.
"""

import torch
from torch import Tensor

from benchmark.types import Update

NO_DIRECTION = 1e-5
"""Share of the largest layer's norm below which a layer's gradient is rounding."""

EPS = 1e-20
"""Least product of two norms that a cosine is divided by; torch's own 1e-8 is above those of small layers."""


def squared_distance(update: Update, seen: Update) -> Tensor:
    """sum || g - g* ||^2 over all parameters (Zhu et al. 2019, arXiv 1906.08935; their main.py)."""
    return (_flat(update, seen) - _flat(seen, seen)).square().sum()


def cosine_distance(update: Update, seen: Update) -> Tensor:
    """1 - <g, g*> / (||g|| ||g*||), all parameters as one vector (after Geiping et al. 2020, arXiv 2003.14053)."""
    return 1 - torch.cosine_similarity(_flat(update, seen), _flat(seen, seen), dim=0)


def layerwise_cosine_distance(update: Update, seen: Update) -> Tensor:
    """The mean over parameters of 1 - <g, g*> / (||g|| ||g*||): every layer counts alike, however small its gradient.

    Parameters whose seen gradient is zero but for rounding, as attention's key biases, have no direction and are left out.
    """
    norms = {name: value.norm() for name, value in seen.items()}
    largest = max(norms.values())
    told = [name for name, norm in norms.items() if norm > NO_DIRECTION * largest]
    distances = [1 - torch.cosine_similarity(update[name].flatten(), seen[name].flatten(), dim=0, eps=EPS) for name in told]
    return torch.stack(distances).mean()


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation of (B, C, H, W): the mean absolute difference of neighbours, down plus across."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return down + across


def _flat(update: Update, seen: Update) -> Tensor:
    return torch.cat([update[name].flatten() for name in seen])
