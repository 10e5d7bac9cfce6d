"""Local training by plain SGD: one definition of its order, its steps and its mean, for clients and for attackers.

After E steps of size eta from theta_0, a client's update is (theta_0 - theta_E) / (eta E). That is the mean of the gradients on
its way, and it is computed as such: for E = 1 it is the gradient itself, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from benchmark.diffusion.loss import Forward
from benchmark.diffusion.process import Mixture


def local_batches(images: int, clients: int, local_steps: int) -> list[list[slice]]:
    """For each client the batch of each of its steps, as places among all images: client by client, step by step."""
    batch = images // (clients * local_steps)
    places = [slice(start, start + batch) for start in range(0, images, batch)]
    return [places[first : first + local_steps] for first in range(0, len(places), local_steps)]


def mean_update(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over steps of one client, or over clients."""
    return {name: reduce(torch.add, [update[name] for update in updates]) / len(updates) for name in updates[0]}


def local_update(
    network: nn.Module, loss: Callable[[Forward, slice], Tensor], batches: Sequence[slice], lr: float
) -> dict[str, Tensor]:
    """The update of one client, one tensor per trainable parameter, differentiable in whatever the losses depend on.

    Args:
        network: the global weights. They stay, but no other thread may use this module meanwhile.
        loss: of one step's batch, under the weights of that step.
        batches: one for each step.
        lr: step size, eta.
    """
    weights: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients: list[dict[str, Tensor]] = []
    for batch in batches:
        if gradients:
            weights = {name: value - lr * gradients[-1][name] for name, value in weights.items()}
        found = grad(loss(partial(_at, network, weights), batch), list(weights.values()), create_graph=True)
        gradients.append(dict(zip(weights, found, strict=True)))
    return mean_update(gradients)


def _at(network: nn.Module, weights: dict[str, Tensor], x_t: Tensor, t: Tensor | Mixture) -> Tensor:
    prediction: Tensor = functional_call(network, weights, (x_t, t))
    return prediction
