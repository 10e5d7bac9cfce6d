"""Rivals of the engine: the loops that people write, and other ways to compute the same gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.func import functional_call, jvp, vmap
from torch.func import grad as functional_grad

from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.matching.engine import Task


def loop(tasks: Sequence[Task]) -> list[Tensor]:
    """Return the gradients of the plain loop: one victim at a time, the update with a graph, then back through it."""
    gradients = []
    for task in tasks:
        x_0 = task.start["x_0"].clone().requires_grad_()
        loss = training_loss(
            task.observation.network, task.observation.schedule, x_0, task.observation.timesteps, task.observation.noise
        )
        update = parameter_gradient(task.observation.network, loss, create_graph=True)
        distance = sum((update[name] - value).square().sum() for name, value in task.observation.update.items())
        distance.backward(inputs=[x_0])
        gradients.append(x_0.grad)
    return gradients


def vectorised(tasks: Sequence[Task]) -> list[Tensor]:
    """Return the gradients by torch.func.vmap over the victims, reverse over reverse."""
    network, schedule = tasks[0].observation.network, tasks[0].observation.schedule
    weights = {name: value.detach() for name, value in network.named_parameters()}

    def loss(weights: Any, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return training_loss(lambda x, t: functional_call(network, weights, (x, t)), schedule, x_0, t, eps)

    def cost(x_0: Tensor, t: Tensor, eps: Tensor, observed: Any) -> Tensor:
        update = functional_grad(loss)(weights, x_0, t, eps)
        return sum((update[name] - value).square().sum() for name, value in observed.items())

    return list(vmap(functional_grad(cost))(*_columns(tasks)))


def forward_over_reverse(tasks: Sequence[Task]) -> list[Tensor]:
    """Return the gradients one at a time, as the derivative of dL/dx_0 along 2 (g - g*) in the weights."""
    gradients = []
    for task in tasks:
        network, schedule, observation = task.observation.network, task.observation.schedule, task.observation
        weights = {name: value.detach() for name, value in network.named_parameters()}

        def loss(
            weights: Any, x_0: Tensor, network: Any = network, schedule: Any = schedule, observation: Any = observation
        ) -> Tensor:
            return training_loss(
                lambda x, t: functional_call(network, weights, (x, t)), schedule, x_0, observation.timesteps, observation.noise
            )

        x_0 = task.start["x_0"]
        update = functional_grad(loss)(weights, x_0)
        away = {name: 2 * (update[name] - value) for name, value in observation.update.items()}
        gradients.append(jvp(lambda w, loss=loss, x_0=x_0: functional_grad(loss, argnums=1)(w, x_0), (weights,), (away,))[1])
    return gradients


def differences(tasks: Sequence[Task], step: float = 1e-3) -> list[Tensor]:
    """Return the gradients one at a time, by central differences of dL/dx_0 along g - g*: first-order passes only."""
    gradients = []
    for task in tasks:
        observation = task.observation
        names, parameters = zip(*observation.network.named_parameters(), strict=True)
        x_0 = task.start["x_0"].clone().requires_grad_()

        def towards_x(x_0: Tensor = x_0, observation: Any = observation) -> Tensor:
            return grad(
                training_loss(observation.network, observation.schedule, x_0, observation.timesteps, observation.noise), x_0
            )[0]

        loss = training_loss(observation.network, observation.schedule, x_0, observation.timesteps, observation.noise)
        update = grad(loss, parameters)
        away = [g - observation.update[name] for name, g in zip(names, update, strict=True)]
        size = step / torch.stack([value.norm() for value in away]).norm()
        with torch.no_grad():
            before = [value.clone() for value in parameters]
            torch._foreach_add_(parameters, away, alpha=size.item())
        ahead = towards_x()
        with torch.no_grad():
            torch._foreach_add_(parameters, away, alpha=-2 * size.item())
        behind = towards_x()
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)
        gradients.append((ahead - behind) / size)
    return gradients


def _columns(tasks: Sequence[Task]) -> tuple[Any, ...]:
    names = tasks[0].observation.update
    observed = {name: torch.stack([task.observation.update[name] for task in tasks]) for name in names}
    fixed = (
        torch.stack([task.observation.timesteps for task in tasks]),
        torch.stack([task.observation.noise for task in tasks]),
    )
    return torch.stack([task.start["x_0"] for task in tasks]), *fixed, observed
