"""The optimiser with which a client trains, and the message in which it sends what it learned.

Clients and attackers use the same definitions. The clients' steps are those of torch's own optimisers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.sgd import mean_update

OptimiserName = Literal["sgd", "adam", "adamw", "amsgrad"]

MessageKind = Literal["update", "weights"]

Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Optimiser:
    """An optimiser of torch with its settings. Its state is fresh at the start of every round.

    Attributes:
        name: `sgd` without momentum, `adam` and `amsgrad` with weight decay in the gradient (L2), or `adamw`.
        lr: step size eta.
        beta1: decay of the mean of gradients; without effect for `sgd`, as `beta2` and `eps`.
        beta2: decay of the mean of squared gradients.
        eps: number that is added to the root of the mean of squared gradients.
        weight_decay: weight decay.
        max_norm: l2 norm to which the gradient of each step is clipped, over all parameters; None for no clipping.
    """

    name: OptimiserName = "sgd"
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether a step is plain SGD: the gradient times the step size."""
        return self.name == "sgd" and not self.weight_decay and self.max_norm is None

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return torch's optimiser of these parameters."""
        if self.name == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        betas = (self.beta1, self.beta2)
        return kind(parameters, self.lr, betas, self.eps, self.weight_decay, amsgrad=self.name == "amsgrad")


@dataclass(frozen=True)
class Message:
    """What a client sends.

    Attributes:
        kind: `update`: the change of the weights. `weights`: the weights themselves.
        precision: the type of the numbers sent.
    """

    kind: MessageKind = "update"
    precision: Precision = "float32"

    @torch.no_grad()
    def received(self, network: nn.Module, update: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """Return the update as the server computes it from the message.

        Args:
            network: the network with the global weights.
            update: the client's update, (theta_0 - theta_E) / scale.
            scale: number of steps times step size.
        """
        dtype: torch.dtype = getattr(torch, self.precision)
        if self.kind == "update":
            return {name: value.to(dtype).to(value.dtype) for name, value in update.items()}
        received = {}
        for name, value in update.items():
            weight = network.get_parameter(name).detach().double()
            sent = (weight - scale * value.double()).to(value.dtype).to(dtype)
            received[name] = ((weight - sent.double()) / scale).to(value.dtype)
        return received


class LocalTraining:
    """The training of one client: the gradients of its steps come in, its update comes out.

    Attributes:
        network: the network with the weights of the next step. The given one is never changed.
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
            self._torch = self._optimiser.build(p for p in self.network.parameters() if p.requires_grad)
        trained = dict(self.network.named_parameters())
        for name, value in gradient.items():
            trained[name].grad = value.detach().clone()
        if self._optimiser.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained.values(), self._optimiser.max_norm)
        self._torch.step()
        self._torch.zero_grad(set_to_none=True)

    @property
    @torch.no_grad()
    def update(self) -> dict[str, Tensor]:
        """Return (theta_0 - theta_E) / (eta E). For plain SGD it is computed as the mean of the gradients, which is exact."""
        if self._optimiser.is_plain:
            return mean_update(self._gradients)
        scale = self._optimiser.lr * len(self._gradients)
        return {
            name: (self._start.get_parameter(name) - self.network.get_parameter(name)) / scale for name in self._gradients[0]
        }
