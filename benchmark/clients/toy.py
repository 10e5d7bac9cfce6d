"""A tiny round of clients, for the checks of the plugin contract and for tests."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import AttackerKnowledge, Round, draw_history, draw_victim, observe, public_parameters
from benchmark.clients.local_data import augmented
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.families.unet2d import UNet2D
from benchmark.diffusion.process import Process
from benchmark.diffusion.schedulers import read_process
from benchmark.plugins import ClientStep, Defense, Picture
from benchmark.scenario import Scenario
from benchmark.types import Observation, Prior, Victim

EARLIER_PICTURES = 8
"""Number of pictures from which the earlier steps of a kept state are drawn."""


@dataclass(frozen=True, eq=False)
class Toy:
    """A tiny round with its private images.

    Attributes:
        network: the network with the global weights.
        schedule: the diffusion process.
        victim: the private images with their timesteps and noise.
        scenario: the clients' practice.
    """

    network: Denoiser
    schedule: Process
    victim: Victim
    scenario: Scenario

    def step(self) -> ClientStep:
        """Return the step of a single client that trains once on all images of the round."""
        images = len(self.victim.images)
        practice = dataclasses.replace(self.scenario, batch_size=images, local_steps=1, clients=1, client_images=None, epochs=1)
        return ClientStep(self.network, self.schedule, self.victim, practice)

    def round(self) -> Round:
        """Return the round. Its update is the mean over all clients."""
        draw = stream(0, "toy history")
        public = _pictures(EARLIER_PICTURES, self.victim.images.shape[-1], draw)
        history = draw_history(public, self.scenario, self.schedule, draw)
        return Round(self.network, self.schedule, self.victim, self.scenario, history)

    def observe(self, defense: Defense, seed: int = 0) -> Observation:
        """Return the observation of this round under a defense. A copy of the undefended network serves as the prior."""
        network = defense.prepare(self.network, stream(seed, "prepare"))
        prior = Prior(copy.deepcopy(self.network).requires_grad_(False), copy.deepcopy(self.schedule))
        granted = AttackerKnowledge(copy.deepcopy(network), torch.zeros(3), public_parameters(defense, self.scenario), prior)
        training = dataclasses.replace(self.round(), network=network)
        return observe(training, defense, granted, stream(seed, "defense"), stream(seed, "order"))


class PlainDefense(Defense):
    """A defense that changes nothing and hides nothing."""


def toy(size: int = 8, batch: int = 2, channels: tuple[int, int] = (4, 8), **practice: Any) -> Toy:
    """Return a round of a U-Net with a few thousand parameters on random images.

    The U-Net has every kind of layer that the presets have.

    Args:
        size: side of the square images in pixels.
        batch: batch size of the scenario.
        channels: channels of the U-Net's two levels.
        practice: more fields of the scenario.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        unet = UNet2DModel(
            sample_size=size,
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=4,
        )
    scenario = Scenario(**{"image_size": size, "batch_size": batch, "timesteps": 200, **practice})
    schedule = dataclasses.replace(read_process(DDPMScheduler(num_train_timesteps=1000)), min_snr=scenario.min_snr)
    draw = stream(0, "toy")
    pictures = _pictures(scenario.images // scenario.epochs, size, draw)
    victim = augmented(draw_victim(pictures, scenario, schedule, draw), scenario.augment, stream(0, "toy augment"))
    return Toy(UNet2D(unet, schedule.times), schedule, victim, scenario)


def _pictures(count: int, size: int, generator: torch.Generator) -> list[Picture]:
    return [Picture(2 * torch.rand(3, size, size, generator=generator) - 1, f"toy-{i}") for i in range(count)]
