"""The clients: they draw timesteps and noise and train under their defense, and the server sees an observation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Process, uniform_timesteps
from benchmark.diffusion.sgd import local_batches, mean_update
from benchmark.plugins import ClientStep, Defense, Picture
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Prior, PublicParameters, Update, Victim


@dataclass(frozen=True, eq=False)
class Round:
    """One round: every client trains from the same global weights, which stay as they are.

    Attributes:
        network: the global weights.
        schedule: the process.
        victim: the private images of all clients and steps, with their timesteps and noise.
        scenario: the clients' practice.
    """

    network: Denoiser
    schedule: Process
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
        # Where timesteps are fixed nothing is drawn, and a defense may refuse them.
        least = 0 if self.scenario.fixed_timesteps else defense.least_timestep(self.scenario, self.schedule.steps)
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
    pictures: Sequence[Picture], scenario: Scenario, schedule: Process, generator: torch.Generator, least: int = 0
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


def split(victim: Victim, parts: int) -> list[Victim]:
    """Split what lies behind a round into equal parts, e.g. one of each client."""
    return [_part(victim, place) for (place,) in local_batches(len(victim.images), parts, 1)]


def disclosed(defense: Defense, practice: Scenario) -> PublicParameters:
    """Return what everybody knows of a defense that holds for an update with this practice behind it."""
    public = defense.public(practice)
    return public if practice.clients == 1 else public.of_aggregate()


@dataclass(frozen=True, eq=False)
class Granted:
    """What the attacker is granted besides the update. Its tensors share no storage with the clients' own.

    Attributes:
        network: a copy of the global weights.
        mean_colour: (C,) mean over public images, in [-1, 1].
        public: what everybody knows of the defense.
        prior: what the attacker knows of images in general.
    """

    network: Denoiser
    mean_colour: Tensor
    public: PublicParameters
    prior: Prior | None = None


def observe(
    trained: Round, defense: Defense, granted: Granted, generator: torch.Generator, shuffle: torch.Generator
) -> Observation:
    """Train the round under `defense` and return what the server sees of it.

    Args:
        trained: the round.
        defense: decides what is combined, released and granted.
        granted: what else the attacker is granted.
        generator: the defense's random stream.
        shuffle: the random stream of the order in which timesteps and noise are granted, where that is not known.
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
        network=granted.network,
        schedule=copy.deepcopy(trained.schedule),
        image_shape=(channels, height, width),
        batch_size=count // scenario.batches,
        mean_colour=granted.mean_colour.clone(),
        local_steps=scenario.local_steps,
        local_lr=scenario.local_lr if scenario.local_steps > 1 else None,
        clients=scenario.clients,
        order_known=ordered,
        public=granted.public,
        timesteps=None if Capability.TIMESTEP in defense.hides else victim.timesteps[order],
        noise=None if disclosed is None else disclosed[order],
        prior=granted.prior,
    )
