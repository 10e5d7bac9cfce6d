"""Local training by plain SGD. Clients and attackers use the same functions, so order, steps and mean agree.

After E steps of size eta from theta_0, the update of a client is (theta_0 - theta_E) / (eta E). This is the mean of the E
gradients, and it is computed as that mean. So for E = 1 it equals the gradient exactly.
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
    """Return the batches as slices of all images, one list of local steps for each client: client by client, step by step."""
    batch = images // (clients * local_steps)
    places = [slice(start, start + batch) for start in range(0, images, batch)]
    return [places[first : first + local_steps] for first in range(0, len(places), local_steps)]


def mean_update(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of updates, by parameter name: over the steps of one client, or over clients."""
    return {name: reduce(torch.add, [update[name] for update in updates]) / len(updates) for name in updates[0]}


def local_update(
    network: nn.Module, loss: Callable[[Forward, slice], Tensor], batches: Sequence[slice], lr: float
) -> dict[str, Tensor]:
    """Return the update of one client, one tensor per trainable parameter, differentiable in the inputs of the losses.

    Args:
        network: the network with the global weights. They do not change, but no other thread may use this module meanwhile.
        loss: returns the loss of a step's batch, given the network with the weights of that step.
        batches: one batch for each step.
        lr: step size eta.
    """
    weights: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients: list[dict[str, Tensor]] = []
    for batch in batches:
        if gradients:
            weights = {name: value - lr * gradients[-1][name] for name, value in weights.items()}
        values = grad(loss(partial(_predict, network, weights), batch), list(weights.values()), create_graph=True)
        gradients.append(dict(zip(weights, values, strict=True)))
    return mean_update(gradients)


def _predict(network: nn.Module, weights: dict[str, Tensor], x_t: Tensor, t: Tensor | Mixture) -> Tensor:
    prediction: Tensor = functional_call(network, weights, (x_t, t))
    return prediction
