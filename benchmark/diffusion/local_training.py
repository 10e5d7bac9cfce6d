"""The local training of one client by torch's own optimisers, and the update that the server computes from its message."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from benchmark.base.practice import Message, Optimiser
from benchmark.diffusion import secaggplus
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.sgd import mean_update


class LocalTraining:
    """The training of one client: the gradients of its steps come in, its update comes out.

    Attributes:
        network: the network with the weights of the next step. The network with the global weights is never changed.
    """

    def __init__(self, network: Denoiser, optimiser: Optimiser, steps: int) -> None:
        """Start from the global weights.

        Args:
            network: the network with the global weights.
            optimiser: the client's optimiser.
            steps: number E of steps.
        """
        self.network, self._start, self._optimiser, self._steps = network, network, optimiser, steps
        self._gradients: list[Mapping[str, Tensor]] = []
        self._torch: torch.optim.Optimizer | None = None

    def step(self, gradient: Mapping[str, Tensor]) -> None:
        """Take one step. Parameters without a gradient do not change."""
        self._gradients.append(gradient)
        if self._optimiser.is_plain and len(self._gradients) == self._steps:
            return  # nobody needs the weights after the last step
        if self._torch is None:
            self.network = copy.deepcopy(self._start)
            self._torch = torch_optimiser(self._optimiser, [p for p in self.network.parameters() if p.requires_grad])
        trained = [self.network.get_parameter(name) for name in gradient]
        for parameter, value in zip(trained, gradient.values(), strict=True):
            parameter.grad = value.detach().clone()
        if self._optimiser.max_norm is not None:
            nn.utils.clip_grad_norm_(trained, self._optimiser.max_norm)
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update(self) -> dict[str, Tensor]:
        """Return (theta_0 - theta_E) / (eta E). For plain SGD this is the mean of the gradients, and computed so."""
        if self._optimiser.is_plain:
            return mean_update(self._gradients)
        scale = self._optimiser.lr * len(self._gradients)
        return {
            name: (self._start.get_parameter(name) - self.network.get_parameter(name)) / scale for name in self._gradients[0]
        }


def torch_optimiser(optimiser: Optimiser, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimiser with these settings."""
    if optimiser.name == "sgd":
        return torch.optim.SGD(parameters, lr=optimiser.lr, weight_decay=optimiser.weight_decay)
    kind = torch.optim.AdamW if optimiser.name == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=optimiser.lr,
        betas=(optimiser.beta1, optimiser.beta2),
        eps=optimiser.eps,
        weight_decay=optimiser.weight_decay,
        amsgrad=optimiser.name == "amsgrad",
    )


@torch.no_grad()
def received(
    message: Message, network: nn.Module, update: Mapping[str, Tensor], scale: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the update as the server computes it from a client's message.

    Args:
        message: what the client sends.
        network: the network with the global weights.
        update: the client's update, (theta_0 - theta_E) / scale.
        scale: number of steps times step size.
        generator: the random stream of rounding at random.
    """
    if message.kind == "update":
        return {name: _rounded(message, value, generator).to(value.dtype) for name, value in update.items()}
    computed = {}
    for name, value in update.items():
        weight = network.get_parameter(name).detach().double()
        sent = _rounded(message, (weight - scale * value.double()).to(value.dtype), generator)
        computed[name] = ((weight - sent.double()) / scale).to(value.dtype)
    return computed


def _rounded(message: Message, value: Tensor, generator: torch.Generator) -> Tensor:
    """Return a tensor with the precision of the message."""
    if message.precision == "secaggplus":
        uniform = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        return secaggplus.received(value, message.examples, uniform)
    dtype: torch.dtype = getattr(torch, message.precision)
    return value.to(dtype)
