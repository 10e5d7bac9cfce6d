"""The attacker's copy of the clients' round, for P observations side by side: from guesses to the updates they would give."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd import grad

from benchmark.base.machine import out_of_memory
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import Forward, losses, parameter_gradient
from benchmark.diffusion.process import Process
from benchmark.diffusion.sgd import local_batches, local_update, mean_update
from benchmark.matching.layers import per_victim
from benchmark.types import Observation, Prior, Update


@dataclass(frozen=True, eq=False)
class Guess(ABC):
    """What is thought to lie behind P updates of N images each: a dataclass of tensors whose first dimensions are P and N."""

    @abstractmethod
    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """(P, N): of each example, a number whose gradient in the parameters is the example's share of the update, times N."""

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

    def examples(self, places: slice) -> Self:
        """Some of the N examples alone."""
        return type(self)(*(part[:, places] for part in self.parts()))


@dataclass(frozen=True, eq=False)
class CleanGuess(Guess):
    """Images, timesteps and noise, as the client had them.

    Attributes:
        x_0: (P, N, C, H, W) images.
        t: (P, N) int64 timesteps.
        eps: (P, N, C, H, W) noise.
    """

    x_0: Tensor
    t: Tensor
    eps: Tensor

    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """See `Guess.losses`: the client's own training losses."""
        each = losses(network, schedule, *(part.flatten(0, 1) for part in self.parts()))
        return each.view(self.x_0.shape[:2])


@dataclass(frozen=True, eq=False)
class NoisyGuess(Guess):
    """Noisy images, timesteps and residuals. A gradient is linear in the residual, and neither image nor noise is named.

    With r = net(x_t, t) - target, the derivative of mean(r^2) in the parameters is that of 2 mean(r net(x_t, t)) at fixed r.

    Attributes:
        x_t: (P, N, C, H, W) noisy images.
        t: (P, N) int64 timesteps.
        residual: (P, N, C, H, W), what the network's output is above its target, at the weights of the example's local step.
    """

    x_t: Tensor
    t: Tensor
    residual: Tensor

    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """See `Guess.losses`: numbers with the losses' gradient, not the losses themselves."""
        x_t, t, residual = (part.flatten(0, 1) for part in self.parts())
        each: Tensor = (2 * residual * network(x_t, t)).flatten(1).mean(1)
        return each.view(self.x_t.shape[:2])


@dataclass(frozen=True, eq=False)
class Stack:
    """P observations of one kind side by side; names as in `Observation`, tensors with P as an additional first dimension."""

    update: Update
    network: Denoiser
    schedule: Process
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


def step_by_step(seen: Observation) -> bool:
    """Whether guesses at what lies behind the update go through the clients' local steps, one after the other.

    That is exact, and needs to know which example belongs to which step. Where that is not known, all N images are read as one
    batch at the global weights: exact for clients that take one step, and else wrong by the order of the step size.
    """
    return seen.local_steps > 1 and seen.order_known


class Backend(StrEnum):
    """How the updates of guesses are computed: together (`layers.per_victim`), one by one, or through local steps."""

    BATCHED = "batched"
    LOOP = "loop"
    UNROLLED = "unrolled"


class Updates:
    """The updates that guesses would give in the round of one observation, differentiable in the guesses.

    Attributes:
        backend: as `choose_backend` chose it for the observation.
    """

    def __init__(self, seen: Observation, backend: Backend) -> None:
        self.seen, self.network, self.schedule, self.names = seen, seen.network, seen.schedule, list(seen.update)
        self.backend = backend
        self.copies: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
        self.fewest = 2 if sum(parameter.numel() for parameter in self.network.parameters()) < LOOP_ALONE else 1

    def __call__(self, guess: Guess) -> Update:
        """(P, *shape) for each parameter."""
        ways = {Backend.BATCHED: self._together, Backend.LOOP: self._one_by_one, Backend.UNROLLED: self._unrolled}
        return ways[self.way(len(guess))](guess)

    def way(self, victims: int) -> Backend:
        """The backend for so many guesses at once."""
        return self.backend if victims >= self.fewest or self.backend is Backend.UNROLLED else Backend.LOOP

    def _together(self, guess: Guess) -> Update:
        victims = len(guess)
        if victims not in self.copies:
            self.copies[victims] = per_victim(self.network, self.names, victims)
        network, leaves = self.copies[victims]
        loss = guess.losses(network, self.schedule).mean(1).sum()
        return dict(zip(leaves, grad(loss, list(leaves.values()), create_graph=True), strict=True))

    def _one_by_one(self, guess: Guess) -> Update:
        losses = [alone.losses(self.network, self.schedule).mean() for alone in guess.one_by_one()]
        return self._side_by_side([parameter_gradient(self.network, loss, create_graph=True) for loss in losses])

    def _unrolled(self, guess: Guess) -> Update:
        # Local weights take the place of the network's own for a while, so each thread needs a network of its own.
        network = copy.deepcopy(self.network, {id(parameter): parameter for parameter in self.network.parameters()})
        return self._side_by_side([self._round(network, alone) for alone in guess.one_by_one()])

    def _round(self, network: nn.Module, guess: Guess) -> dict[str, Tensor]:
        """The update of one guess, through the local steps of each client."""

        def loss(forward: Forward, batch: slice) -> Tensor:
            return guess.examples(batch).losses(forward, self.schedule).mean()

        seen, lr = self.seen, self.seen.local_lr
        assert lr is not None
        clients = local_batches(seen.image_count, seen.clients, seen.local_steps)
        return mean_update([local_update(network, loss, batches, lr) for batches in clients])

    def _side_by_side(self, updates: Sequence[Update]) -> Update:
        return {name: torch.stack([update[name] for update in updates]) for name in self.names}


def choose_backend(observation: Observation) -> Backend:
    """Return how the updates of guesses at what lies behind an observation are to be computed.

    They are `UNROLLED` where they go through the local steps (`step_by_step`). Else they are `BATCHED`, or go by `LOOP` for a
    network that has a layer without a rule (`layers.RULES`), or whose updates differ when victims share a batch. To find that
    out costs four gradients.
    """
    if step_by_step(observation):
        return Backend.UNROLLED
    return Backend.BATCHED if _batches_agree(observation) else Backend.LOOP


def _batches_agree(observation: Observation) -> bool:
    """Return whether two random guesses give the same updates together as one by one.

    They do not where a weight is used outside its layer or by two of them, or where a layer mixes the batch.
    """
    draw, device = torch.Generator().manual_seed(0), observation.network.device
    x_0, eps = torch.randn(2, 2, *observation.batch_shape, generator=draw).to(device)
    t = torch.randint(observation.schedule.steps, (2, observation.image_count), generator=draw).to(device)
    guess = CleanGuess(x_0, t, eps)
    try:
        together = Updates(observation, Backend.BATCHED)(guess)
    except Exception as error:  # whatever a layer without a rule makes of it: one by one it may still do
        if out_of_memory(error):  # says nothing of the network
            raise
        return False
    alone = {name: value.detach() for name, value in Updates(observation, Backend.LOOP)(guess).items()}
    least = NEGLIGIBLE * max(float(value.norm()) for value in alone.values())
    return all(
        float((together[name].detach() - value).norm()) <= AGREEMENT * max(float(value.norm()), least)
        for name, value in alone.items()
    )


def granted(variables: Mapping[str, Tensor], known: Stack) -> Guess:
    """Images as searched (`x_0`), timesteps as granted, noise as granted or else as searched (`eps`)."""
    assert known.timesteps is not None
    return CleanGuess(variables["x_0"], known.timesteps, known.noise if known.noise is not None else variables["eps"])


def unknowns(observation: Observation, x_0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A start for what `granted` searches: images `x_0`, and noise `eps` from N(0, 1) where that is private."""
    return {"x_0": x_0} if observation.noise is not None else {"x_0": x_0, "eps": gaussian(observation, generator)}


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
    """A standard normal start of the private images' shape, drawn on the CPU and moved to the update's device."""
    return torch.randn(observation.batch_shape, generator=generator).to(observation.network.device)
