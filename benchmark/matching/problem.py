"""The attacker's copy of the client's step: from guessed images, timesteps and noise to the update they would give."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.matching.objectives import squared_distance
from benchmark.types import Observation, Update


def guessed_update(observation: Observation, x_0: Tensor, t: Tensor, eps: Tensor) -> Update:
    """The update that the client would have sent for `x_0` (B, C, H, W), `t` (B,) and `eps` (B, C, H, W), differentiable."""
    network = observation.network
    loss = training_loss(network, observation.schedule, x_0, t, eps)
    return parameter_gradient(network, loss, create_graph=True)


def evaluation(observation: Observation, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """One evaluation at `x_0`: the gradient of the squared distance to the seen update, of the images' shape."""
    x_0 = x_0.detach().clone().requires_grad_()
    distance = squared_distance(guessed_update(observation, x_0, t, eps), observation.update)
    return torch.autograd.grad(distance, x_0)[0]


def defect(observation: Observation) -> str | None:
    """Why the update cannot be matched, None where it can: a name or shape that the network lacks, or no finite signal."""
    shapes = {name: p.shape for name, p in observation.network.named_parameters() if p.requires_grad}
    for name, value in observation.update.items():
        if name not in shapes:
            return f"the update holds '{name}', which the network does not"
        if value.shape != shapes[name]:
            return f"the update's '{name}' has shape {tuple(value.shape)}, the network's {tuple(shapes[name])}"
        if not torch.isfinite(value).all():
            return f"the update's '{name}' is not finite"
    if not any(value.any() for value in observation.update.values()):
        return "the update is zero everywhere"
    return None


def flat(observation: Observation) -> Tensor:
    """A start of one colour, the mean of public images."""
    return observation.mean_colour.view(1, -1, 1, 1).expand(observation.batch_shape).clone()


def gaussian(observation: Observation, generator: torch.Generator) -> Tensor:
    """A standard normal start of the private batch's shape, drawn on the CPU and moved to the update's device."""
    return torch.randn(observation.batch_shape, generator=generator).to(observation.network.device)
