"""The clients: they draw timesteps and noise and train under their defense, and the server sees an observation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.schedule import Schedule, uniform_timesteps
from benchmark.diffusion.sgd import local_batches, mean_update
from benchmark.plugins import ClientStep, Defense, Picture
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Prior, PublicParameters, Update, Victim


@dataclass(frozen=True, eq=False)
class Round:
    """One round: every client trains from the same global weights, which stay as they are.

    Attributes:
        network: the global weights.
        schedule: noise schedule and prediction type.
        victim: the private images of all clients and steps, with their timesteps and noise.
        scenario: the clients' practice.
    """

    network: Denoiser
    schedule: Schedule
    victim: Victim
    scenario: Scenario

    @property
    def batches(self) -> list[list[Victim]]:
        """For each client the private batch of each of its steps."""
        clients = local_batches(len(self.victim.images), self.scenario.clients, self.scenario.local_steps)
        return [[_part(self.victim, places) for places in steps] for steps in clients]

    def update(self, defense: Defense, generator: torch.Generator) -> Update:
        """What the server sees: the mean of the updates that leave the clients."""
        return mean_update([self._trained(batches, defense, generator) for batches in self.batches])

    def _trained(self, batches: Sequence[Victim], defense: Defense, generator: torch.Generator) -> Update:
        """What leaves one client."""
        network = self.network
        least = defense.least_timestep(self.scenario, self.schedule.steps)
        gradients: list[Update] = []
        for batch in batches:
            if gradients:
                network = _stepped(network, gradients[-1], self.scenario.local_lr)
            step = ClientStep(network, self.schedule, batch, self.scenario, least)
            gradients.append(defense.gradient(step, generator))
        return defense.release(mean_update(gradients), generator)


def _part(victim: Victim, places: slice) -> Victim:
    return Victim(victim.images[places], victim.timesteps[places], victim.noise[places], victim.sources[places])


@torch.no_grad()
def _stepped(network: Denoiser, gradient: Update, lr: float) -> Denoiser:
    """A copy of the network, one step of plain SGD further; parameters without a gradient stay."""
    network = copy.deepcopy(network)
    for name, value in gradient.items():
        network.get_parameter(name).sub_(value, alpha=lr)
    return network


def image_counts(scenario: Scenario, victims: int, generator: torch.Generator) -> list[int]:
    """The number of images behind each victim: the scenario's own, or drawn by Poisson sampling and never 0."""
    if scenario.sampling == "fixed":
        return [scenario.images] * victims
    local_images = round(scenario.batch_size / scenario.sample_rate)
    sizes: list[int] = []
    while len(sizes) < victims:
        size = int((torch.rand(local_images, generator=generator) < scenario.sample_rate).sum())
        sizes += [size] if size else []
    return sizes


def draw_victim(
    pictures: Sequence[Picture], scenario: Scenario, schedule: Schedule, generator: torch.Generator, least: int = 0
) -> Victim:
    """Draw the timesteps, from `least` on, and the noise of all images of a round, on the CPU."""
    images = torch.stack([picture.image for picture in pictures])
    fixed = scenario.fixed_timesteps
    if fixed:
        timesteps = torch.tensor(fixed).expand(len(pictures)).clone()
    else:
        timesteps = uniform_timesteps(len(pictures), least, schedule.steps, generator)
    noise = torch.randn(images.shape, generator=generator)
    return Victim(images, timesteps, noise, tuple(picture.source for picture in pictures))


def behind_one(scenario: Scenario, defense: Defense) -> Scenario:
    """The practice behind one update that the server sees: that of a single client, unless updates are aggregated."""
    if defense.aggregates or scenario.clients == 1:
        return scenario
    order = scenario.order if scenario.local_steps > 1 else "known"
    # Whoever asks has drawn the timesteps; what is left to be known of them is whether they were fixed.
    timesteps = scenario.timesteps[0] if isinstance(scenario.timesteps, tuple) else scenario.timesteps
    return dataclasses.replace(scenario, clients=1, order=order, timesteps=timesteps)


def updates_a_round(scenario: Scenario, defense: Defense) -> int:
    """How many updates the server sees of each round: one, or one of each client, see `behind_one`."""
    return scenario.clients // behind_one(scenario, defense).clients


def seen_apart(rounds: Sequence[Victim], scenario: Scenario, defense: Defense) -> list[Victim]:
    """What lies behind each update that the server sees: each round, or each client of each round, see `behind_one`."""
    parts = updates_a_round(scenario, defense)
    return [_part(victim, place) for victim in rounds for (place,) in local_batches(len(victim.images), parts, 1)]


def known_of(defense: Defense, scenario: Scenario) -> PublicParameters:
    """Return what everybody knows of a defense, as far as it holds for the update that the server receives."""
    public = defense.public(scenario)
    return public if scenario.clients == 1 else public.of_aggregate()


def observe(
    trained: Round,
    defense: Defense,
    mean_colour: Tensor,
    granted_network: Denoiser,
    generator: torch.Generator,
    shuffle: torch.Generator,
    prior: Prior | None = None,
) -> Observation:
    """Train the round under `defense` and show the server what it sees of it.

    Args:
        trained: the round.
        defense: decides what is combined, released and granted.
        mean_colour: (C,) mean over public images.
        granted_network: a copy of the weights that is not the clients' own.
        generator: the defense's random stream.
        shuffle: the random stream of the order in which timesteps and noise are granted, where that is not known.
        prior: what the attacker knows of images in general.
    """
    victim, scenario = trained.victim, trained.scenario
    update = trained.update(defense, generator)
    disclosed = None if Capability.NOISE in defense.hides else defense.disclose(victim.noise.clone(), generator)
    count, channels, height, width = victim.images.shape
    ordered = scenario.order == "known" or defense.hides >= {Capability.TIMESTEP, Capability.NOISE}
    order = torch.arange(count) if ordered else torch.randperm(count, generator=shuffle)
    order = order.to(victim.images.device)
    return Observation(
        update={name: value.detach().clone() for name, value in update.items()},
        network=granted_network,
        schedule=copy.deepcopy(trained.schedule),
        image_shape=(channels, height, width),
        batch_size=count // scenario.batches,
        mean_colour=mean_colour.clone(),
        local_steps=scenario.local_steps,
        local_lr=scenario.local_lr if scenario.local_steps > 1 else None,
        clients=scenario.clients,
        order_known=ordered,
        public=known_of(defense, scenario),
        timesteps=None if Capability.TIMESTEP in defense.hides else victim.timesteps[order],
        noise=None if disclosed is None else disclosed[order],
        prior=prior,
    )
