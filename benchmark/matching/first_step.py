"""Gradients read back from one step of Adam, AdamW or AMSGrad with a fresh state, or of SGD in rounded weights. Ours.

From a fresh state the bias corrections cancel the decays: the first step moves a weight by s = eta g / (|g| + eps), for all
three (Kingma and Ba 2015, algorithm 1; AdamW: Loshchilov and Hutter 2019). With a = |s| / eta < 1 this is inverted by
g = sign(s) eps a / (1 - a).

The weights are rounded, so the server knows s only up to an error e of about half a unit in the last place. The gradient then
lies in an interval, from a - e / eta to a + e / eta. Where it is narrow, the coordinate is read. Where the upper end reaches 1,
only the sign and a lower bound are left. Where e exceeds |s|, only an upper bound is left.

AdamW's weight decay moves a weight by eta lambda theta more, which is known. The L2 decay of Adam adds lambda theta to the
gradient. Clipping multiplies all gradients by one unknown number, which stays in the result.

A defense may set coordinates to zero, or clip them to a limit. Nothing is known of the former. Of the latter one bound is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.diffusion import secaggplus
from benchmark.types import Observation, PublicParameters
from benchmark.vectors import REACHED, norm

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
    if observation.message.ema is not None and observation.local_steps > 1:  # the path is longer than its ends show
        return f"the average of the weights of {observation.local_steps} steps was sent, and its rounding has no bound"
    optimiser, clip = observation.optimiser, observation.public.update_clip_norm
    if (optimiser.name != "sgd" or optimiser.weight_decay) and clip and norm(observation.update) > REACHED * clip:
        return f"the step of {optimiser.name} was clipped, so it has another size"
    if optimiser.name == "sgd":
        return None
    if observation.clients > 1:
        return f"the update is the mean of {observation.clients} clients' steps of {observation.optimiser.name}"
    if observation.local_steps > 1:
        return f"{observation.local_steps} steps of {observation.optimiser.name} lie behind the update"
    if earlier := observation.optimiser.earlier_steps:
        return f"the state of {observation.optimiser.name} was kept from {earlier} earlier steps, which were not observed"
    return None


def gradient_intervals(observation: Observation) -> dict[str, Interval]:
    """Return bounds of the gradient of the client's only step, by parameter (`gradient_interval`).

    Raises:
        ValueError: the gradient cannot be read (`why_unreadable`); the message is one sentence.
    """
    if problem := why_unreadable(observation):
        raise ValueError(problem)
    return {name: gradient_interval(observation, name) for name in observation.update}


def gradient_interval(observation: Observation, name: str) -> Interval:
    """Return bounds of one parameter's gradient at the client's only step, or of the mean gradient over steps of SGD.

    They hold if the gradient can be read (`why_unreadable`), which costs a pass over the whole update to find out.
    """
    optimiser, update = observation.optimiser, observation.update[name].double()
    moved = update  # (theta_0 - theta_E) / (eta E)
    weight = observation.network.get_parameter(name).detach().double()
    if optimiser.name == "adamw":
        moved = moved - optimiser.weight_decay * weight
    rounding = _rounding(observation, name)
    error = rounding + ARITHMETIC * moved.abs()
    value, low, high = moved, moved - error, moved + error
    if optimiser.name != "sgd":
        inside = moved.clamp(ARITHMETIC - 1, 1 - ARITHMETIC)
        value, low, high = (_inverse(share, optimiser.eps) for share in (inside, low, high))
    decay = optimiser.weight_decay * weight if optimiser.name != "adamw" else torch.zeros_like(weight)
    summed = ARITHMETIC * decay.abs()  # the rounding of the gradient plus its decay
    low, high = _without_losses(observation.public, update, rounding, (low, high))
    return Interval(value - decay, low - decay - summed, high - decay + summed)


def _without_losses(
    public: PublicParameters, update: Tensor, rounding: Tensor, bounds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return bounds that also hold for coordinates that the defense pruned or clipped, by the update up to its rounding."""
    low, high = bounds
    pruned, limit = torch.zeros_like(update, dtype=torch.bool), math.inf
    if public.kept_share is not None and public.kept_share < 1:
        pruned = update.abs() <= rounding
    if public.coordinate_limit is not None:
        limit = (1 - ARITHMETIC) * public.coordinate_limit
    return (
        torch.where(pruned | (update - rounding <= -limit), -math.inf, low),
        torch.where(pruned | (update + rounding >= limit), math.inf, high),
    )


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

    AdamW multiplies the weights by 1 - eta lambda before it steps. That number and the product are rounded, too. The average of
    weights inherits the share `Message.gain` of these errors, and is rounded itself. It is read after one step only.
    """
    optimiser, message, steps = observation.optimiser, observation.message, observation.local_steps
    update, weight = observation.update[name].double(), observation.network.get_parameter(name).detach().double()
    lr = observation.local_lr or 1.0
    scale = lr * message.gain(steps)
    if optimiser.is_plain and message.kind == "update" and message.ema is None:
        local = torch.zeros_like(weight)
    else:
        end = weight - lr * steps * update  # theta_E, not the average
        size = torch.maximum(weight.abs(), end.abs()) * (1 + ARITHMETIC)
        step = 1.5 if optimiser.name == "adamw" and optimiser.weight_decay else 0.5
        average = 0.0 if message.ema is None else 0.5
        local = unit(size, "float32") * (step * message.gain(steps) + average) / scale
    if message.precision == "float32":
        return local
    if message.precision == "secaggplus":
        return local + secaggplus.largest_error(weight - scale * update, message.examples) / scale
    if message.kind == "update":
        return local + unit(update.abs(), message.precision) / 2
    sent = (weight - scale * update).float().to(getattr(torch, message.precision))
    return local + unit(sent.abs().double(), message.precision) / (2 * scale)


def unit(size: Tensor, precision: str) -> Tensor:
    """Return the distance between neighbouring numbers of a precision at these sizes (a unit in the last place)."""
    exponent = torch.frexp(size).exponent - MANTISSA_BITS[precision]
    return torch.ldexp(torch.ones_like(size), exponent.clamp(min=LEAST_EXPONENT[precision]))
