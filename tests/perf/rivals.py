"""What the engine is measured against: the loops that people write, and the other ways to the same gradient."""

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
    """The plain loop: one victim at a time, the update with a graph, and back through it."""
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
    """torch.func.vmap over the victims, reverse over reverse."""
    network, schedule = tasks[0].observation.network, tasks[0].observation.schedule
    weights = {name: value.detach() for name, value in network.named_parameters()}

    def loss(weights: Any, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return training_loss(lambda x, t: functional_call(network, weights, (x, t)), schedule, x_0, t, eps)

    def cost(x_0: Tensor, t: Tensor, eps: Tensor, seen: Any) -> Tensor:
        update = functional_grad(loss)(weights, x_0, t, eps)
        return sum((update[name] - value).square().sum() for name, value in seen.items())

    return list(vmap(functional_grad(cost))(*_columns(tasks)))


def forward_over_reverse(tasks: Sequence[Task]) -> list[Tensor]:
    """One at a time: the derivative of dL/dx_0 along 2 (g - g*) in the weights, which is the same gradient."""
    gradients = []
    for task in tasks:
        network, schedule, seen = task.observation.network, task.observation.schedule, task.observation
        weights = {name: value.detach() for name, value in network.named_parameters()}

        def loss(weights: Any, x_0: Tensor, network: Any = network, schedule: Any = schedule, seen: Any = seen) -> Tensor:
            return training_loss(
                lambda x, t: functional_call(network, weights, (x, t)), schedule, x_0, seen.timesteps, seen.noise
            )

        x_0 = task.start["x_0"]
        update = functional_grad(loss)(weights, x_0)
        away = {name: 2 * (update[name] - value) for name, value in seen.update.items()}
        gradients.append(jvp(lambda w, loss=loss, x_0=x_0: functional_grad(loss, argnums=1)(w, x_0), (weights,), (away,))[1])
    return gradients


def differences(tasks: Sequence[Task], step: float = 1e-3) -> list[Tensor]:
    """One at a time: central differences of dL/dx_0 along g - g*, from first-order passes only."""
    gradients = []
    for task in tasks:
        seen = task.observation
        names, parameters = zip(*seen.network.named_parameters(), strict=True)
        x_0 = task.start["x_0"].clone().requires_grad_()

        def towards_x(x_0: Tensor = x_0, seen: Any = seen) -> Tensor:
            return grad(training_loss(seen.network, seen.schedule, x_0, seen.timesteps, seen.noise), x_0)[0]

        loss = training_loss(seen.network, seen.schedule, x_0, seen.timesteps, seen.noise)
        update = grad(loss, parameters)
        away = [g - seen.update[name] for name, g in zip(names, update, strict=True)]
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
    seen = {name: torch.stack([task.observation.update[name] for task in tasks]) for name in names}
    fixed = (
        torch.stack([task.observation.timesteps for task in tasks]),
        torch.stack([task.observation.noise for task in tasks]),
    )
    return torch.stack([task.start["x_0"] for task in tasks]), *fixed, seen
