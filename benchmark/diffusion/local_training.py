"""The local training of one client by torch's own optimisers, and the update that the server computes from its message."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError
from benchmark.base.practice import Message, Optimiser
from benchmark.diffusion import secaggplus
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.sgd import mean_update


class LocalTraining:
    """The training of one client: the gradients of its steps come in, its update comes out.

    Attributes:
        network: the network with the weights of the next step. The network with the global weights is never changed.
    """

    def __init__(self, network: Denoiser, optimiser: Optimiser, message: Message, steps: int) -> None:
        """Start from the global weights.

        Args:
            network: the network with the global weights.
            optimiser: the client's optimiser.
            message: what the client sends.
            steps: number E of steps.
        """
        self.network, self._start, self._optimiser, self._message, self._steps = network, network, optimiser, message, steps
        self._gradients: list[Mapping[str, Tensor]] = []
        self._averages: dict[str, Tensor] = {}
        self._torch: torch.optim.Optimizer | None = None

    def remember(self, gradient: Mapping[str, Tensor]) -> None:
        """Take a step of an earlier round: the state of the optimiser changes, and the weights stay the global ones."""
        self._apply(gradient)
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.copy_(self._start.get_parameter(name))

    def step(self, gradient: Mapping[str, Tensor]) -> None:
        """Take one step. Parameters without a gradient do not change."""
        self._gradients.append(gradient)
        if self._is_mean and len(self._gradients) == self._steps:
            return  # nobody needs the weights after the last step
        self._apply(gradient)
        if self._message.ema is not None:
            self._average(gradient, self._message.ema)

    @property
    def _is_mean(self) -> bool:
        """Return whether the update is the mean of the gradients."""
        return self._optimiser.is_plain and self._message.ema is None

    @torch.no_grad()
    def _average(self, names: Iterable[str], decay: float) -> None:
        """Move the averages towards the weights, as diffusers' `EMAModel.step` does with a fixed decay."""
        for name in names:
            average = self._averages.setdefault(name, self._start.get_parameter(name).detach().clone())
            average.sub_((1 - decay) * (average - self.network.get_parameter(name)))

    def _apply(self, gradient: Mapping[str, Tensor]) -> None:
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
        """Return (theta_0 - theta_E) / (eta E). For plain SGD this is the mean of the gradients, and computed so.

        Averaged weights replace theta_E, and their `Message.gain` replaces E.
        """
        if self._is_mean:
            return mean_update(self._gradients)
        scale = self._optimiser.lr * self._message.gain(len(self._gradients))
        sent = self._averages or dict(self.network.named_parameters())
        return {name: (self._start.get_parameter(name) - sent[name]) / scale for name in self._gradients[0]}


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


@contextmanager
def dropout(network: nn.Module, probability: float, generator: torch.Generator) -> Iterator[None]:
    """Let the dropout layers of a network drop with this probability, although it stays in evaluation mode.

    Args:
        network: the network. It draws nothing from the generator if the probability is 0.
        probability: probability in [0, 1) of each entry to become 0; the others are divided by 1 - probability.
        generator: the random stream of the masks, on the CPU.

    Raises:
        UserError: the network has no dropout layer, and the probability is above 0.
    """

    def drop(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept = torch.rand(output.shape, generator=generator).to(output.device) >= probability
        return output * kept / (1 - probability)

    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)] if probability else []
    if probability and not layers:
        raise UserError("dropout needs a model with dropout layers, and this one has none")
    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def received(
    message: Message, network: nn.Module, update: Mapping[str, Tensor], scale: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the update as the server computes it from a client's message.

    Args:
        message: what the client sends.
        network: the network with the global weights.
        update: the client's update, (theta_0 - theta_E) / scale.
        scale: step size times `Message.gain`.
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
