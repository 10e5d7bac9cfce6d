"""The rounding of weights before Flower's secure aggregation, SecAgg+, with the default settings of its workflow.

Source: flwr 1.42.0, server/workflow/secure_aggregation/secaggplus_workflow.py (settings), client/mod/secure_aggregation/
secaggplus_mod.py (weighting) and common/secure_aggregation/quantization.py (rounding)

A client multiplies its weights by its number of examples over 1000, clips them to +-8, and rounds them to multiples of 2^-18,
up or down at random. The server divides by the factor again. So the step is 2^-18 only for a client of 1000 examples; for 16
examples it is 2.4e-4.

Left out: the masks, which cancel in the sum; dropped clients; clients with unequal numbers of examples. In SecAgg+ the server
learns only the sum over clients. Here that is the defense `secure_aggregation`. Without it the server sees each client's
rounded weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLIP = 8.0
"""Largest magnitude of a weight after weighting."""

LEVELS = 2**22
"""Number of steps between -CLIP and CLIP."""

MAX_EXAMPLES = 1000.0
"""Number of examples at which the factor is 1."""

STEP = 2 * CLIP / LEVELS
"""Distance of neighbouring levels of weighted weights, 2^-18."""

LARGEST_ERROR = 1.25 * STEP
"""Largest error of a weighted weight: a step by rounding at random, and a quarter by float32 arithmetic at the size of CLIP."""


def factor(examples: int) -> float:
    """Return the factor of a client's weights, which is rounded to the same levels."""
    return round(examples / MAX_EXAMPLES * LEVELS) / LEVELS


def received(weights: Tensor, examples: int, uniform: Tensor) -> Tensor:
    """Return the weights as the server computes them, float64.

    Args:
        weights: float32.
        examples: number of the client's examples.
        uniform: random numbers from [0, 1), of the same shape. They decide whether a weight is rounded up or down.
    """
    scaled = (weights * factor(examples)).clamp(-CLIP, CLIP)
    place = (scaled + CLIP) * (LEVELS / (2 * CLIP))
    level = place.ceil().double()
    level = level - (uniform < level - place.double()).double()
    return (level * STEP - CLIP) / factor(examples)


def largest_error(weights: Tensor, examples: int) -> Tensor:
    """Return the largest error of each received weight; infinite where it may have been clipped."""
    clipped = weights.abs() * factor(examples) >= CLIP - LARGEST_ERROR
    return torch.where(clipped, math.inf, LARGEST_ERROR / factor(examples))
