"""Noise multiplicity: an image's gradient is the mean over K draws of noise and timestep, then clipped and made noisy.

Source: after the abstract of Dockhorn, Cao, Vahdat and Kreis 2023 (TMLR, arXiv 2210.09929)

As `dp_sgd` otherwise, and with its guarantee, also of several local steps: an image still has one clipped gradient. The mean
over K draws varies less, so that more of what is clipped is signal. Where the scenario fixes the timestep all K draws have it;
else each has its own.

The K draws are not granted to the attack, nor which timesteps they have. What everybody knows is K.

Cost: K gradients per example, in memory K B times the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.diffusion.denoiser import Denoiser
from benchmark.federation import ClientStep
from benchmark.plugins import Defense
from benchmark.privacy import check_mechanism, check_per_example, guarantee, private_gradient
from benchmark.scenario import Scenario
from benchmark.types import Capability, Privacy, PublicParameters, Update


@dataclass(frozen=True, kw_only=True)
class DPDM(Defense):
    """Parameters.

    Attributes:
        draws: noise multiplicity K.
        noise_multiplier: standard deviation of the noise on the sum of gradients, in units of `clip`.
        clip: l2 norm that each example's mean gradient is clipped to.
        delta: probability that the guarantee fails, in (0, 1).
        rounds: rounds that `epsilon_total` composes.
    """

    hides: ClassVar[frozenset[Capability]] = frozenset({Capability.TIMESTEP, Capability.NOISE})

    draws: int = 8
    noise_multiplier: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    rounds: int = 100

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, not {self.draws}")
        check_mechanism(self.noise_multiplier, self.clip, self.delta, self.rounds)

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`; a network whose examples have no gradients of their own is refused."""
        check_per_example(network)
        return network

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`."""
        step = step.redrawn(self.draws, generator)
        return private_gradient(step, self.clip, self.noise_multiplier, generator, self.draws)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; the noise is that of each coordinate of the mean over examples, local steps and clients."""
        one_step = self.noise_multiplier * self.clip / scenario.batch_size
        noise_std = one_step / math.sqrt(scenario.batches)
        return PublicParameters(clip_norm=self.clip, noise_std=noise_std, draws_per_image=self.draws)

    def privacy(self, scenario: Scenario) -> Privacy:
        """See `Defense.privacy`."""
        return guarantee(
            self.noise_multiplier,
            scenario.sample_rate,
            scenario.local_steps,
            self.rounds,
            self.delta,
            "add or remove one image",
        )
