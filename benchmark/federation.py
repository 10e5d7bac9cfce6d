"""The client: it draws timesteps and noise, trains one step under its defense, and the server sees an observation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.schedule import Schedule
from benchmark.plugins import Defense, Picture
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Prior, Update, Victim


@dataclass(frozen=True, eq=False)
class ClientStep:
    """One FedSGD step on a private batch, as a defense sees it.

    Attributes:
        network: the global weights.
        schedule: noise schedule and prediction type.
        victim: the private batch with its timesteps and noise.
        expected_batch_size: the scenario's batch size, which differs from the batch at hand under Poisson sampling.
    """

    network: Denoiser
    schedule: Schedule
    victim: Victim
    expected_batch_size: int

    def loss(self, network: torch.nn.Module) -> Tensor:
        """The mean training loss of the batch under `network`, which may wrap the client's own."""
        return training_loss(network, self.schedule, self.victim.images, self.victim.timesteps, self.victim.noise)

    def gradient(self) -> Update:
        """The gradient of the mean loss, one tensor per trainable parameter."""
        return parameter_gradient(self.network, self.loss(self.network))


def batch_sizes(scenario: Scenario, victims: int, generator: torch.Generator) -> list[int]:
    """The batch size of each victim: the scenario's own, or drawn by Poisson sampling and never empty."""
    if scenario.sampling == "fixed":
        return [scenario.batch_size] * victims
    local_images = round(scenario.batch_size / scenario.sample_rate)
    sizes: list[int] = []
    while len(sizes) < victims:
        size = int((torch.rand(local_images, generator=generator) < scenario.sample_rate).sum())
        sizes += [size] if size else []
    return sizes


def draw_victim(pictures: Sequence[Picture], scenario: Scenario, schedule: Schedule, generator: torch.Generator) -> Victim:
    """The client's draw of timesteps and noise for its batch, on the CPU."""
    images = torch.stack([picture.image for picture in pictures])
    fixed = scenario.fixed_timesteps
    if fixed:
        timesteps = torch.tensor(fixed).expand(len(pictures)).clone()
    else:
        # The draw is a share of T, so that victims keep their place when models differ in T.
        share = torch.rand(len(pictures), generator=generator, dtype=torch.float64)
        timesteps = (share * schedule.steps).long()
    noise = torch.randn(images.shape, generator=generator)
    return Victim(images, timesteps, noise, tuple(picture.source for picture in pictures))


def observe(
    step: ClientStep,
    defense: Defense,
    scenario: Scenario,
    mean_colour: Tensor,
    granted_network: Denoiser,
    generator: torch.Generator,
    prior: Prior | None = None,
) -> Observation:
    """Train the step under `defense` and show the server what it sees of it.

    Args:
        step: the client's step.
        defense: decides what is combined, released and granted.
        scenario: the client's practice.
        mean_colour: (C,) mean over public images.
        granted_network: a copy of the weights that is not the client's own.
        generator: the defense's random stream.
        prior: what the attacker knows of images in general.
    """
    victim = step.victim
    update = defense.release(defense.gradient(step, generator), generator)
    disclosed = None if Capability.NOISE in defense.hides else defense.disclose(victim.noise.clone(), generator)
    channels, height, width = victim.images.shape[1:]
    return Observation(
        update={name: value.detach().clone() for name, value in update.items()},
        network=granted_network,
        schedule=copy.deepcopy(step.schedule),
        image_shape=(channels, height, width),
        batch_size=len(victim.images),
        mean_colour=mean_colour.clone(),
        local_steps=scenario.local_steps,
        clients=scenario.clients,
        public=defense.public(scenario),
        timesteps=None if Capability.TIMESTEP in defense.hides else victim.timesteps.clone(),
        noise=None if disclosed is None else disclosed.clone(),
        prior=prior,
    )
