"""The attacker's copy of the client's step, for P observations side by side: from guesses to the updates they would give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd import grad

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import losses, parameter_gradient
from benchmark.diffusion.schedule import Schedule
from benchmark.matching.layers import per_victim
from benchmark.types import Observation, Prior, Update


@dataclass(frozen=True, eq=False)
class Guess(ABC):
    """What is thought to lie behind P updates: a dataclass of tensors whose first dimension is P."""

    @abstractmethod
    def losses(self, network: nn.Module, schedule: Schedule) -> Tensor:
        """(P, B): of each example, a number whose gradient in the parameters is the example's share of the update, times B."""

    def parts(self) -> list[Tensor]:
        """The tensors, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        """P, the number of updates."""
        return len(self.parts()[0])

    def one_by_one(self) -> Iterator[Self]:
        """Each of them alone, with P = 1."""
        for alone in zip(*self.parts(), strict=True):
            yield type(self)(*(part.unsqueeze(0) for part in alone))


@dataclass(frozen=True, eq=False)
class CleanGuess(Guess):
    """Images, timesteps and noise, as the client had them.

    Attributes:
        x_0: (P, B, C, H, W) images.
        t: (P, B) int64 timesteps, or (P, B, T) weights over them.
        eps: (P, B, C, H, W) noise.
    """

    x_0: Tensor
    t: Tensor
    eps: Tensor

    def losses(self, network: nn.Module, schedule: Schedule) -> Tensor:
        """See `Guess.losses`: the client's own training losses."""
        each = losses(network, schedule, *(part.flatten(0, 1) for part in self.parts()))
        return each.view(self.x_0.shape[:2])


@dataclass(frozen=True, eq=False)
class NoisyGuess(Guess):
    """Noisy images, timesteps and residuals. The update is linear in the residual, and neither image nor noise is named.

    With r = net(x_t, t) - target, the derivative of mean(r^2) in the parameters is that of 2 mean(r net(x_t, t)) at fixed r.

    Attributes:
        x_t: (P, B, C, H, W) noisy images.
        t: (P, B) int64 timesteps.
        residual: (P, B, C, H, W), what the network's output is above its target.
    """

    x_t: Tensor
    t: Tensor
    residual: Tensor

    def losses(self, network: nn.Module, schedule: Schedule) -> Tensor:
        """See `Guess.losses`: numbers with the losses' gradient, not the losses themselves."""
        x_t, t, residual = (part.flatten(0, 1) for part in self.parts())
        each: Tensor = (2 * residual * network(x_t, t)).flatten(1).mean(1)
        return each.view(self.x_t.shape[:2])


@dataclass(frozen=True, eq=False)
class Stack:
    """P observations of one kind side by side; names as in `Observation`, tensors with P as an additional first dimension."""

    update: Update
    network: Denoiser
    schedule: Schedule
    timesteps: Tensor | None
    noise: Tensor | None
    prior: Prior | None


def stack(observations: Sequence[Observation]) -> Stack:
    """Lay observations that agree in all but their tensors side by side."""
    first = observations[0]
    return Stack(
        {name: torch.stack([seen.update[name] for seen in observations]) for name in first.update},
        first.network,
        first.schedule,
        _stacked([seen.timesteps for seen in observations]),
        _stacked([seen.noise for seen in observations]),
        first.prior,
    )


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    held = [value for value in values if value is not None]
    return torch.stack(held) if held else None


LOOP_ALONE = 2_000_000
"""Parameters below which a guess that comes alone goes the way of the loop, where Python is not called back so often."""


AGREEMENT, NEGLIGIBLE = 1e-2, 1e-4
"""Largest relative difference of a gradient together and alone, and share of the largest gradient that counts as rounding."""


class Updates:
    """The updates that guesses would give under one network and schedule, differentiable in the guesses.

    Attributes:
        backend: `batched` (`layers.per_victim`), or `loop` (one at a time) for a network that has a layer without a rule there,
            or whose updates come out otherwise when victims share a batch.
    """

    def __init__(self, network: Denoiser, schedule: Schedule, names: Sequence[str], batch_shape: Sequence[int]) -> None:
        self.network, self.schedule, self.names = network, schedule, list(names)
        self.copies: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
        self.fewest = 2 if sum(parameter.numel() for parameter in network.parameters()) < LOOP_ALONE else 1
        kind = (repr(network), tuple(map(type, network.modules())), tuple(self.names), tuple(batch_shape))
        if kind not in _batched:
            _batched[kind] = self._agrees(batch_shape)
        self.backend = "batched" if _batched[kind] else "loop"

    def __call__(self, guess: Guess) -> Update:
        """(P, *shape) for each parameter: the gradient of each guess's own mean loss."""
        return self._together(guess) if self.way(len(guess)) == "batched" else self._one_by_one(guess)

    def way(self, victims: int) -> str:
        """The backend for so many guesses at once."""
        return self.backend if victims >= self.fewest else "loop"

    def _together(self, guess: Guess) -> Update:
        victims = len(guess)
        if victims not in self.copies:
            self.copies[victims] = per_victim(self.network, self.names, victims)
        network, leaves = self.copies[victims]
        loss = guess.losses(network, self.schedule).mean(1).sum()
        return dict(zip(leaves, grad(loss, list(leaves.values()), create_graph=True), strict=True))

    def _one_by_one(self, guess: Guess) -> Update:
        updates = []
        for alone in guess.one_by_one():
            loss = alone.losses(self.network, self.schedule).mean()
            updates.append(parameter_gradient(self.network, loss, create_graph=True))
        return {name: torch.stack([update[name] for update in updates]) for name in self.names}

    def _agrees(self, batch_shape: Sequence[int]) -> bool:
        """Whether two random guesses give the same updates together as one by one.

        They do not where a weight is used outside its layer or by two of them, or where a layer mixes the batch.
        """
        draw, device = torch.Generator().manual_seed(0), self.network.device
        x_0, eps = torch.randn(2, 2, *batch_shape, generator=draw).to(device)
        t = torch.randint(self.schedule.steps, (2, batch_shape[0]), generator=draw).to(device)
        guess = CleanGuess(x_0, t, eps)
        try:
            together = self._together(guess)
        except Exception:  # whatever a layer without a rule makes of it: one by one it may still do
            return False
        alone = {name: value.detach() for name, value in self._one_by_one(guess).items()}
        least = NEGLIGIBLE * max(float(value.norm()) for value in alone.values())
        return all(
            float((together[name].detach() - value).norm()) <= AGREEMENT * max(float(value.norm()), least)
            for name, value in alone.items()
        )


_batched: dict[object, bool] = {}
"""Which kinds of network give the same updates in a batch, as far as they have been met."""


def granted(variables: Mapping[str, Tensor], known: Stack) -> Guess:
    """Images as searched (`x_0`), timesteps as granted, noise as granted or else as searched (`eps`)."""
    assert known.timesteps is not None
    return CleanGuess(variables["x_0"], known.timesteps, known.noise if known.noise is not None else variables["eps"])


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
