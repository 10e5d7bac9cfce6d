"""Gradients read back from one step of Adam, AdamW or AMSGrad with a fresh state, or of SGD in rounded weights. Ours.

From a fresh state the bias corrections cancel the decays: the first step moves a weight by s = eta g / (|g| + eps), for all
three (Kingma and Ba 2015, algorithm 1; AdamW: Loshchilov and Hutter 2019). With a = |s| / eta < 1 this is inverted by
g = sign(s) eps a / (1 - a).

The weights are rounded, so the server knows s only up to an error e of about half a unit in the last place. The gradient then
lies in an interval, from a - e / eta to a + e / eta. Where it is narrow, the coordinate is read. Where the upper end reaches 1,
only the sign and a lower bound are left. Where e exceeds |s|, only an upper bound is left.

AdamW's weight decay moves a weight by eta lambda theta more, which is known. The L2 decay of Adam adds lambda theta to the
gradient. Clipping multiplies all gradients by one unknown number, which stays in the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.types import Observation

MANTISSA_BITS: Mapping[str, int] = {"float32": 24, "float16": 11, "bfloat16": 8}
"""Bits of the significand, with the hidden one."""

LEAST_EXPONENT: Mapping[str, int] = {"float32": -149, "float16": -24, "bfloat16": -133}
"""Exponent of the smallest positive number."""

ARITHMETIC = 1e-6
"""Relative error of a step by torch's own float32 arithmetic: a few roundings of 6e-8 each."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Bounds of one tensor of a gradient, float64.

    Attributes:
        value: the best estimate. It is finite.
        low: lower bounds, perhaps minus infinity.
        high: upper bounds, perhaps infinity.
    """

    value: Tensor
    low: Tensor
    high: Tensor

    def known(self, tolerance: float) -> Tensor:
        """Return which coordinates are known up to a share of their size: half of the interval's width over the value."""
        return (self.high - self.low) / 2 <= tolerance * self.value.abs()


def why_unreadable(observation: Observation) -> str | None:
    """Return why no gradient can be read from the steps behind an update; None if it can."""
    if observation.optimiser.name == "sgd":
        return None
    if observation.clients > 1:
        return f"the update is the mean of {observation.clients} clients' steps of {observation.optimiser.name}"
    if observation.local_steps > 1:
        return f"{observation.local_steps} steps of {observation.optimiser.name} lie behind the update"
    return None


def gradient_intervals(observation: Observation) -> dict[str, Interval]:
    """Return bounds of the gradient of the client's only step, by parameter (`gradient_interval`)."""
    return {name: gradient_interval(observation, name) for name in observation.update}


def gradient_interval(observation: Observation, name: str) -> Interval:
    """Return bounds of one parameter's gradient at the client's only step.

    Raises:
        ValueError: the gradient cannot be read (`why_unreadable`); the message is one sentence.
    """
    if problem := why_unreadable(observation):
        raise ValueError(problem)
    optimiser, moved = observation.optimiser, observation.update[name].double()
    weight = observation.network.get_parameter(name).detach().double()
    if optimiser.name == "adamw":
        moved = moved - optimiser.weight_decay * weight
    error = _rounding(observation, name) + ARITHMETIC * moved.abs()
    value, low, high = moved, moved - error, moved + error
    if optimiser.name != "sgd":
        inside = moved.clamp(ARITHMETIC - 1, 1 - ARITHMETIC)
        value, low, high = (_inverse(share, optimiser.eps) for share in (inside, low, high))
    decay = optimiser.weight_decay * weight if optimiser.name != "adamw" else torch.zeros_like(weight)
    summed = ARITHMETIC * decay.abs()  # the rounding of the gradient plus its decay
    return Interval(value - decay, low - decay - summed, high - decay + summed)


def update_interval(observation: Observation, name: str) -> Interval:
    """Return bounds of one parameter of the update before the rounding of weights and message, for any number of steps."""
    value = observation.update[name].double()
    error = _rounding(observation, name) + ARITHMETIC * value.abs()
    return Interval(value, value - error, value + error)


def _inverse(share: Tensor, eps: float) -> Tensor:
    """Return the gradient at which a step is this share of the step size; infinite from a share of 1 on."""
    size = share.abs()
    return torch.where(size < 1, eps * share / (1 - size), share.sign() * math.inf)


def _rounding(observation: Observation, name: str) -> Tensor:
    """Return the largest error of the update by rounding: in the client's arithmetic at each step, and in the message.

    AdamW multiplies the weights by 1 - eta lambda before it steps. That number and the product are rounded, too.
    """
    optimiser, message, update = observation.optimiser, observation.message, observation.update[name].double()
    weight = observation.network.get_parameter(name).detach().double()
    scale = (observation.local_lr or 1.0) * observation.local_steps
    end = weight - scale * update
    if optimiser.name == "sgd" and optimiser.is_plain and message.kind == "update":
        local = torch.zeros_like(weight)
    else:
        size = torch.maximum(weight.abs(), end.abs()) * (1 + ARITHMETIC)
        local = unit(size, "float32") * (1.5 if optimiser.name == "adamw" and optimiser.weight_decay else 0.5)
        local = observation.local_steps * local / scale
    if message.precision == "float32":
        return local
    if message.kind == "update":
        return local + unit(update.abs(), message.precision) / 2
    sent = end.float().to(getattr(torch, message.precision))
    return local + unit(sent.abs().double(), message.precision) / (2 * scale)


def unit(size: Tensor, precision: str) -> Tensor:
    """Return the distance between neighbouring numbers of a precision at these sizes (a unit in the last place)."""
    exponent = torch.frexp(size).exponent - MANTISSA_BITS[precision]
    return torch.ldexp(torch.ones_like(size), exponent.clamp(min=LEAST_EXPONENT[precision]))
