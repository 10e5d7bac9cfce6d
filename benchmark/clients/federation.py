"""The local training of clients under a defense, and the observation that the attacking server gets from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.base.errors import UserError, shown
from benchmark.clients.local_data import walk
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.local_training import LocalTraining, dropout, received
from benchmark.diffusion.process import Process, draw_timesteps
from benchmark.diffusion.sgd import local_batches, mean_update
from benchmark.plugins import ClientStep, Defense, Picture
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Prior, PublicParameters, Update, Victim


@dataclass(frozen=True, eq=False)
class Round:
    """One round, in which every client starts from the same global weights. The round does not change these weights.

    Attributes:
        network: the network with the global weights.
        schedule: the diffusion process.
        victim: the private images of all clients and steps, with their timesteps and noise.
        scenario: the clients' practice.
        history: one record per client of the public images of its earlier steps, if it has kept the state of its optimiser.
    """

    network: Denoiser
    schedule: Process
    victim: Victim
    scenario: Scenario
    history: tuple[Victim, ...] = ()

    @property
    def batches(self) -> list[list[Victim]]:
        """Return one list per client with the private batch of each local step."""
        clients = local_batches(len(self.victim.images), self.scenario.clients, self.scenario.local_steps)
        return [[self.victim.part(batch) for batch in steps] for steps in clients]

    def update(self, defense: Defense, generator: torch.Generator) -> Update:
        """Return the update that the server receives: the mean of the clients' updates."""
        histories: Sequence[Sequence[Victim]] = [[]] * self.scenario.clients
        if steps := self.scenario.earlier_steps:
            histories = [split_victim(earlier, steps) for earlier in self.history]
        return mean_update(
            [
                self._client_update(history, batches, defense, generator)
                for history, batches in zip(histories, self.batches, strict=True)
            ]
        )

    def _client_update(
        self, history: Sequence[Victim], batches: Sequence[Victim], defense: Defense, generator: torch.Generator
    ) -> Update:
        """Train one client on its batches and return the update that it sends. `history` are the batches before the round."""
        scenario = self.scenario
        training = LocalTraining(self.network, scenario.local_optimiser, scenario.sent, len(batches))
        # Fixed timesteps need no least timestep, since none are drawn. A defense may even refuse fixed timesteps.
        least_timestep = 0 if self.scenario.fixed_timesteps else defense.least_timestep(self.scenario, self.schedule.steps)

        def gradient(batch: Victim) -> Update:
            with dropout(training.network, scenario.dropout, generator):
                return defense.gradient(ClientStep(training.network, self.schedule, batch, scenario, least_timestep), generator)

        for batch in history:
            training.remember(gradient(batch))
        for batch in batches:
            training.step(gradient(batch))
        released = defense.release(sent_part(training.update(), scenario), scenario, generator)
        if scenario.sent.is_exact:
            return released
        return received(scenario.sent, self.network, released, scenario.scale, generator)


def sent_part(update: Mapping[str, Tensor], scenario: Scenario) -> dict[str, Tensor]:
    """Return the parameters of an update that the clients send, by name.

    Raises:
        UserError: there are none.
    """
    part = scenario.sent_parameters or ""
    sent = {name: value for name, value in update.items() if part in name}
    if not sent:
        raise UserError(f"sent_parameters names none: no trained parameter of the model has {shown(part)} in its name")
    return sent


def image_counts(scenario: Scenario, victims: int, generator: torch.Generator) -> list[int]:
    """Return the number of images of each victim, as the scenario fixes it or by Poisson sampling. It is never 0.

    An image counts at each use.

    Args:
        scenario: the clients' practice.
        victims: number of victims.
        generator: the random stream of Poisson sampling.
    """
    if scenario.sampling == "fixed":
        return [scenario.images] * victims
    local_images = round(scenario.batch_size / scenario.sample_rate)
    sizes: list[int] = []
    while len(sizes) < victims:
        size = int((torch.rand(local_images, generator=generator) < scenario.sample_rate).sum())
        sizes += [size] if size else []
    return sizes


def draw_victim(
    pictures: Sequence[Picture], scenario: Scenario, schedule: Process, generator: torch.Generator, least_timestep: int = 0
) -> Victim:
    """Draw the timesteps and the noise of all images of a round, on the CPU, and the order of later epochs.

    Args:
        pictures: the private images of the round, each once.
        scenario: the clients' practice, which may fix the timesteps.
        schedule: the diffusion process.
        generator: the random stream of timesteps and noise.
        least_timestep: the smallest timestep that may be drawn.
    """
    pictures = walk(pictures, scenario, generator)
    images = torch.stack([picture.image for picture in pictures])
    fixed = scenario.fixed_timesteps
    if fixed:
        timesteps = torch.tensor(fixed).expand(len(pictures)).clone()
    else:
        timesteps = draw_timesteps(len(pictures), least_timestep, schedule.steps, generator)
    noise = torch.randn(images.shape, generator=generator)
    return Victim(images, timesteps, noise, tuple(picture.source for picture in pictures))


def draw_history(
    public: Sequence[Picture], scenario: Scenario, schedule: Process, generator: torch.Generator, least_timestep: int = 0
) -> tuple[Victim, ...]:
    """Draw the earlier steps that the kept states of the clients' optimisers remember, with images of public pictures.

    Args:
        public: the pictures to draw from, with replacement.
        scenario: the clients' practice. A list of fixed timesteps belongs to the private images; others are drawn here.
        schedule: the diffusion process.
        generator: the random stream of pictures, timesteps and noise.
        least_timestep: the smallest timestep that may be drawn.

    Returns:
        One record per client; none if the state is fresh.
    """
    count = scenario.earlier_steps * scenario.batch_size
    practice = Scenario(timesteps=scenario.timesteps if isinstance(scenario.timesteps, int) else "uniform")
    drawn: list[Victim] = []
    while count and len(drawn) < scenario.clients:
        chosen = torch.randint(len(public), (count,), generator=generator).tolist()
        drawn.append(draw_victim([public[place] for place in chosen], practice, schedule, generator, least_timestep))
    return tuple(drawn)


def split_victim(victim: Victim, parts: int) -> list[Victim]:
    """Split the victim of a round into equal parts, for example one per client."""
    return [victim.part(batch) for (batch,) in local_batches(len(victim.images), parts, 1)]


def public_parameters(defense: Defense, practice: Scenario) -> PublicParameters:
    """Return the defense's public parameters that are valid for an update of clients with this practice.

    Parameters that describe a single client's update are dropped when the practice has several clients.
    """
    public = defense.public(practice)
    return public if practice.clients == 1 else public.for_aggregate()


@dataclass(frozen=True, eq=False)
class AttackerKnowledge:
    """What the attacker gets besides the update, timesteps and noise. The tensors share no storage with the clients' own.

    Attributes:
        network: a copy of the network with the global weights.
        mean_colour: (C,) mean over public images, in [-1, 1].
        public: the public parameters of the defense.
        prior: a trained denoiser as knowledge of images in general, None where it is not granted.
    """

    network: Denoiser
    mean_colour: Tensor
    public: PublicParameters
    prior: Prior | None = None


def observe(
    training: Round, defense: Defense, granted: AttackerKnowledge, generator: torch.Generator, shuffle: torch.Generator
) -> Observation:
    """Compute the update of the round under `defense` and return what the attacker observes.

    Args:
        training: the round to train.
        defense: decides how gradients are combined, what clients send, and whether timesteps and noise are granted.
        granted: what the attacker gets besides the update, timesteps and noise.
        generator: the defense's random stream.
        shuffle: the random stream that permutes granted timesteps and noise if their order is unknown to the attack.
    """
    victim, scenario = training.victim, training.scenario
    update = training.update(defense, generator)
    disclosed_noise = None if Capability.NOISE in defense.hides else defense.disclose(victim.noise.clone(), generator)
    count, channels, height, width = victim.images.shape
    order_known = scenario.order == "known" or defense.hides >= {Capability.TIMESTEP, Capability.NOISE}
    order = torch.arange(count) if order_known else torch.randperm(count, generator=shuffle)
    order = order.to(victim.images.device)
    return Observation(
        update={name: value.detach().clone() for name, value in update.items()},
        network=granted.network,
        schedule=copy.deepcopy(training.schedule),
        image_shape=(channels, height, width),
        batch_size=count // scenario.batches,
        mean_colour=granted.mean_colour.clone(),
        local_steps=scenario.local_steps,
        local_lr=scenario.local_lr if scenario.lr_matters or defense.uses_lr else None,
        optimiser=scenario.local_optimiser,
        message=scenario.sent,
        clients=scenario.clients,
        dropout=scenario.dropout,
        order_known=order_known,
        public=granted.public,
        timesteps=None if Capability.TIMESTEP in defense.hides else victim.timesteps[order],
        noise=None if disclosed_noise is None else disclosed_noise[order],
        prior=granted.prior,
    )
