"""The attacker's simulation of the clients' training, for P observations at once: from guesses to their updates."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd import grad

from benchmark.base.machine import out_of_memory
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import Forward, losses, parameter_gradient
from benchmark.diffusion.process import Process
from benchmark.diffusion.sgd import local_batches, mean_update
from benchmark.diffusion.unrolling import local_update
from benchmark.matching.layers import per_victim
from benchmark.types import Observation, Prior, Update


@dataclass(frozen=True, eq=False)
class Guess(ABC):
    """A guess of what lies behind P updates of N images each: a dataclass of tensors whose first dimensions are P and N."""

    @abstractmethod
    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """Return a number (P, N) per example. Its gradient in the parameters is N times the example's share of the update."""

    def parts(self) -> list[Tensor]:
        """Return the tensors, in the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        """Return P, the number of updates."""
        return len(self.parts()[0])

    def one_by_one(self) -> Iterator[Self]:
        """Yield each of the P guesses alone, with P = 1."""
        for alone in zip(*self.parts(), strict=True):
            yield type(self)(*(part.unsqueeze(0) for part in alone))

    def examples(self, places: slice) -> Self:
        """Return a guess of some of the N examples alone."""
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
        """See `Guess.losses`: return the client's own training losses."""
        each = losses(network, schedule, *(part.flatten(0, 1) for part in self.parts()))
        return each.view(self.x_0.shape[:2])


@dataclass(frozen=True, eq=False)
class NoisyGuess(Guess):
    """Noisy images, timesteps and residuals. A gradient is linear in the residual; image and noise need not be known.

    With r = net(x_t, t) - target, mean(r^2) has the same derivative in the parameters as 2 mean(r net(x_t, t)) at fixed r. The
    weight of the loss multiplies both.

    Attributes:
        x_t: (P, N, C, H, W) noisy images.
        t: (P, N) int64 timesteps.
        residual: (P, N, C, H, W) the network's output minus its target, at the weights of the example's local step.
    """

    x_t: Tensor
    t: Tensor
    residual: Tensor

    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """See `Guess.losses`: return numbers with the gradient of the losses, not the losses themselves."""
        x_t, t, residual = (part.flatten(0, 1) for part in self.parts())
        each = schedule.weighted((2 * residual * network(x_t, t)).flatten(1).mean(1), t)
        return each.view(self.x_t.shape[:2])


@dataclass(frozen=True, eq=False)
class Stack:
    """P observations of one kind. Names are as in `Observation`; tensors have P as an additional first dimension."""

    update: Update
    network: Denoiser
    schedule: Process
    timesteps: Tensor | None
    noise: Tensor | None
    prior: Prior | None


def stack(observations: Sequence[Observation]) -> Stack:
    """Stack observations that agree in everything except their tensors."""
    first = observations[0]
    return Stack(
        {name: torch.stack([observation.update[name] for observation in observations]) for name in first.update},
        first.network,
        first.schedule,
        _stacked([observation.timesteps for observation in observations]),
        _stacked([observation.noise for observation in observations]),
        first.prior,
    )


def _stacked(values: Sequence[Tensor | None]) -> Tensor | None:
    granted_values = [value for value in values if value is not None]
    return torch.stack(granted_values) if granted_values else None


MIN_PARAMETERS_TO_BATCH_ONE = 2_000_000
"""In networks with fewer parameters a single guess is evaluated with the plain loop, which has less Python overhead."""


MAX_DISAGREEMENT, NEGLIGIBLE_SHARE = 1e-2, 1e-4
"""Largest relative difference between a batched and a single gradient; share of the largest gradient that is rounding."""


def unrolls_local_steps(observation: Observation) -> bool:
    """Return whether the updates of guesses go through the clients' local steps, one after the other.

    This is exact for every optimiser, but requires knowing which example belongs to which step, a fresh state, and no average
    of weights. Otherwise all N images are treated as one batch at the global weights, and the guess gives the gradient of its
    mean loss. That is exact for clients that take one step of plain SGD, and has an error of the order of the step size if they
    take several. After one step of another optimiser, the update is no gradient. Attacks that allow for it compare the guess
    with what can be read of the client's gradient (`defense_aware.match_defense_aware`). All others take it for a gradient.
    """
    can_be_simulated = observation.order_known and not observation.optimiser.earlier_steps and observation.message.ema is None
    return observation.local_steps > 1 and can_be_simulated


class Backend(StrEnum):
    """How the updates of guesses are computed: together (`layers.per_victim`), one by one, or through local steps."""

    BATCHED = "batched"
    LOOP = "loop"
    UNROLLED = "unrolled"


class Updates:
    """The updates that guesses would give in the round of one observation, differentiable in the guesses.

    Attributes:
        backend: the result of `choose_backend` for the observation.
    """

    def __init__(self, observation: Observation, backend: Backend) -> None:
        self.observation, self.backend = observation, backend
        self.network, self.schedule, self.names = observation.network, observation.schedule, list(observation.update)
        self.copies: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.min_batched = 2 if parameters < MIN_PARAMETERS_TO_BATCH_ONE else 1

    def __call__(self, guess: Guess) -> Update:
        """Return the updates (P, *shape), by parameter."""
        functions = {Backend.BATCHED: self._batched, Backend.LOOP: self._looped, Backend.UNROLLED: self._unrolled}
        return functions[self.backend_for(len(guess))](guess)

    def backend_for(self, victims: int) -> Backend:
        """Return the backend for this number of guesses at once."""
        return self.backend if victims >= self.min_batched or self.backend is Backend.UNROLLED else Backend.LOOP

    def _batched(self, guess: Guess) -> Update:
        victims = len(guess)
        if victims not in self.copies:
            self.copies[victims] = per_victim(self.network, self.names, victims)
        network, leaves = self.copies[victims]
        loss = guess.losses(network, self.schedule).mean(1).sum()
        return dict(zip(leaves, grad(loss, list(leaves.values()), create_graph=True), strict=True))

    def _looped(self, guess: Guess) -> Update:
        losses = [alone.losses(self.network, self.schedule).mean() for alone in guess.one_by_one()]
        return self._stack([parameter_gradient(self.network, loss, create_graph=True) for loss in losses])

    def _unrolled(self, guess: Guess) -> Update:
        # Local weights replace the network's own for a while, so each thread needs its own copy.
        network = copy.deepcopy(self.network, {id(parameter): parameter for parameter in self.network.parameters()})
        return self._stack([self._local_training(network, alone) for alone in guess.one_by_one()])

    def _local_training(self, network: nn.Module, guess: Guess) -> dict[str, Tensor]:
        """Return the update of one guess, through the local steps of each client."""

        def loss(forward: Forward, batch: slice) -> Tensor:
            return guess.examples(batch).losses(forward, self.schedule).mean()

        observation = self.observation
        assert observation.local_lr is not None
        optimiser = replace(observation.optimiser, lr=observation.local_lr)
        clients = local_batches(observation.image_count, observation.clients, observation.local_steps)
        return mean_update([local_update(network, loss, batches, optimiser) for batches in clients])

    def _stack(self, updates: Sequence[Update]) -> Update:
        return {name: torch.stack([update[name] for update in updates]) for name in self.names}


def choose_backend(observation: Observation) -> Backend:
    """Return the backend that computes the updates of guesses for an observation.

    It is `UNROLLED` if updates go through the local steps (`unrolls_local_steps`). Else it is `LOOP` if a layer of the
    network has no rule (`layers.RULES`), or if updates differ when victims share a batch. Else it is `BATCHED`. The test costs
    four gradients.
    """
    if unrolls_local_steps(observation):
        return Backend.UNROLLED
    return Backend.BATCHED if _batches_agree(observation) else Backend.LOOP


def _batches_agree(observation: Observation) -> bool:
    """Return whether two random guesses give the same updates together as one by one.

    They do not if a weight is used outside its layer or by two layers, or if a layer mixes the examples of the batch.
    """
    draw, device = torch.Generator().manual_seed(0), observation.network.device
    x_0, eps = torch.randn(2, 2, *observation.batch_shape, generator=draw).to(device)
    t = torch.randint(observation.schedule.steps, (2, observation.image_count), generator=draw).to(device)
    guess = CleanGuess(x_0, t, eps)
    try:
        together = Updates(observation, Backend.BATCHED)(guess)
    except Exception as error:  # a layer without a rule may raise anything; the loop may still work
        if out_of_memory(error):  # this says nothing about the network
            raise
        return False
    alone = {name: value.detach() for name, value in Updates(observation, Backend.LOOP)(guess).items()}
    least = NEGLIGIBLE_SHARE * max(float(value.norm()) for value in alone.values())
    return all(
        float((together[name].detach() - value).norm()) <= MAX_DISAGREEMENT * max(float(value.norm()), least)
        for name, value in alone.items()
    )


def clean_guess(variables: Mapping[str, Tensor], known: Stack) -> Guess:
    """Return a guess of images as searched (`x_0`), timesteps as granted, and noise as granted or else as searched (`eps`)."""
    assert known.timesteps is not None
    return CleanGuess(variables["x_0"], known.timesteps, known.noise if known.noise is not None else variables["eps"])


def start_variables(observation: Observation, x_0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a start for the variables of `clean_guess`: images `x_0`, and noise `eps` from N(0, 1) if the noise is private."""
    return {"x_0": x_0} if observation.noise is not None else {"x_0": x_0, "eps": gaussian_start(observation, generator)}


def why_unmatchable(observation: Observation) -> str | None:
    """Return why the update cannot be matched: a name or shape that the network lacks, or no finite signal. None if it can."""
    shapes = {name: p.shape for name, p in observation.network.named_parameters() if p.requires_grad}
    for name, value in observation.update.items():
        if name not in shapes:
            return f"the update contains '{name}', which the network lacks"
        if value.shape != shapes[name]:
            return f"the update's '{name}' has shape {tuple(value.shape)}, the network's {tuple(shapes[name])}"
        if not torch.isfinite(value).all():
            return f"the update's '{name}' is not finite"
    if not any(value.any() for value in observation.update.values()):
        return "the update is zero everywhere"
    return None


def mean_colour_start(observation: Observation) -> Tensor:
    """Return a start of one colour, the mean of public images."""
    return observation.mean_colour.view(1, -1, 1, 1).expand(observation.batch_shape).clone()


def gaussian_start(observation: Observation, generator: torch.Generator) -> Tensor:
    """Draw a standard normal start of the private images' shape, on the CPU, and move it to the network's device."""
    return torch.randn(observation.batch_shape, generator=generator).to(observation.network.device)
