"""Local training that can be differentiated, for attackers who follow a client's steps from a guess of its images.

Every optimiser of `benchmark.base.practice` is a pure function here, as torch defines it (`local_training.torch_optimiser`):
SGD with weight decay, Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), AMSGrad as in torch, and AdamW (Loshchilov and
Hutter 2019, arXiv 1711.05101). The state is fresh. The gradient of each step is clipped first, if the client clips.

A step moves a weight by the step size eta times a move. The update (theta_0 - theta_E) / (eta E) is the mean of the E moves,
and it is computed so. For one step of plain SGD it equals the gradient exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from benchmark.base.practice import Optimiser, OptimiserName
from benchmark.diffusion.loss import Forward
from benchmark.diffusion.process import Mixture
from benchmark.diffusion.sgd import mean_update

MIN_SQUARE = 1e-38
"""Minimum of a square before its root is taken: the root has no derivative at zero. Far below the square of any usual eps."""

CLIPPING_EPS = 1e-6
"""The number that `torch.nn.utils.clip_grad_norm_` adds to the norm."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The state of Adam for one parameter.

    Attributes:
        steps: steps taken so far.
        mean: decaying mean of the gradients.
        square: decaying mean of their squares.
        largest: the largest `square` so far; only AMSGrad uses it.
    """

    steps: int
    mean: Tensor
    square: Tensor
    largest: Tensor


Rule = Callable[[Optimiser, Tensor, Tensor, Moments], tuple[Tensor, Moments]]
"""A function from the settings, a parameter, its gradient and its state to its move and its next state."""


def sgd(optimiser: Optimiser, weight: Tensor, gradient: Tensor, state: Moments) -> tuple[Tensor, Moments]:
    """Return the gradient, with the weight decay added; the state stays as it is."""
    return _decayed(optimiser, weight, gradient), state


def adam(optimiser: Optimiser, weight: Tensor, gradient: Tensor, state: Moments) -> tuple[Tensor, Moments]:
    """Return the move of Adam, with the weight decay in the gradient."""
    state = _after(optimiser, _decayed(optimiser, weight, gradient), state)
    return _ratio(optimiser, state, state.square), state


def adamw(optimiser: Optimiser, weight: Tensor, gradient: Tensor, state: Moments) -> tuple[Tensor, Moments]:
    """Return the move of AdamW, with the weight decay beside the gradient."""
    state = _after(optimiser, gradient, state)
    return _decayed(optimiser, weight, _ratio(optimiser, state, state.square)), state


def amsgrad(optimiser: Optimiser, weight: Tensor, gradient: Tensor, state: Moments) -> tuple[Tensor, Moments]:
    """Return the move of Adam with the largest mean of squares so far."""
    state = _after(optimiser, _decayed(optimiser, weight, gradient), state)
    return _ratio(optimiser, state, state.largest), state


RULES: Mapping[OptimiserName, Rule] = {"sgd": sgd, "adam": adam, "adamw": adamw, "amsgrad": amsgrad}
"""The rule of each optimiser."""


def local_update(
    network: nn.Module, loss: Callable[[Forward, slice], Tensor], batches: Sequence[slice], optimiser: Optimiser
) -> dict[str, Tensor]:
    """Return the update of one client, one tensor per trainable parameter, differentiable in the inputs of the losses.

    Args:
        network: the network with the global weights. They do not change, but no other thread may use this module meanwhile.
        loss: returns the loss of a step's batch, given the network with the weights of that step.
        batches: one batch for each step.
        optimiser: the client's optimiser.
    """
    rule = RULES[optimiser.name]
    weights: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
    states = {name: _fresh(weight) for name, weight in weights.items()}
    moves: list[dict[str, Tensor]] = []
    for batch in batches:
        if moves:
            weights = {name: weight - optimiser.lr * moves[-1][name] for name, weight in weights.items()}
        values = grad(loss(partial(_predict, network, weights), batch), list(weights.values()), create_graph=True)
        gradients = dict(zip(weights, clipped(values, optimiser.max_norm), strict=True))
        steps = {name: rule(optimiser, weights[name], gradients[name], states[name]) for name in weights}
        moves.append({name: move for name, (move, _) in steps.items()})
        states = {name: state for name, (_, state) in steps.items()}
    return mean_update(moves)


def clipped(gradients: Sequence[Tensor], max_norm: float | None) -> Sequence[Tensor]:
    """Return gradients clipped together to a norm, as `torch.nn.utils.clip_grad_norm_` does; unchanged if it is None."""
    if max_norm is None:
        return gradients
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    factor = (max_norm / (square.clamp(min=MIN_SQUARE).sqrt() + CLIPPING_EPS)).clamp(max=1)
    return [gradient * factor for gradient in gradients]


def _fresh(weight: Tensor) -> Moments:
    zero = weight.new_zeros(()).expand_as(weight)
    return Moments(0, zero, zero, zero)


def _decayed(optimiser: Optimiser, weight: Tensor, move: Tensor) -> Tensor:
    return move + optimiser.weight_decay * weight if optimiser.weight_decay else move


def _after(optimiser: Optimiser, gradient: Tensor, state: Moments) -> Moments:
    mean = optimiser.beta1 * state.mean + (1 - optimiser.beta1) * gradient
    square = optimiser.beta2 * state.square + (1 - optimiser.beta2) * gradient.square()
    return Moments(state.steps + 1, mean, square, torch.maximum(state.largest, square))


def _ratio(optimiser: Optimiser, state: Moments, square: Tensor) -> Tensor:
    """Return the mean gradient over the root of a mean square plus eps, both with bias correction."""
    mean = state.mean / (1 - optimiser.beta1**state.steps)
    root = square.clamp(min=MIN_SQUARE).sqrt() / math.sqrt(1 - optimiser.beta2**state.steps)
    return mean / (root + optimiser.eps)


def _predict(network: nn.Module, weights: dict[str, Tensor], x_t: Tensor, t: Tensor | Mixture) -> Tensor:
    prediction: Tensor = functional_call(network, weights, (x_t, t))
    return prediction
