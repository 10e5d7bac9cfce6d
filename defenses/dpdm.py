"""Noise multiplicity: an image's gradient is the mean over K draws of noise and timestep, then clipped and made noisy.

Source: after the abstract of Dockhorn, Cao, Vahdat and Kreis 2023 (TMLR, arXiv 2210.09929)

As `dp_sgd` otherwise, and with its guarantee, also of several local steps: an image still has one clipped gradient. The mean
over K draws varies less, so that more of what is clipped is signal. Where the scenario fixes the timestep all K draws have it;
else each has its own.

The K draws are not granted to the attack, nor which timesteps they have. What everybody knows is K.

Cost: K gradients per example, in memory K B times the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from benchmark.base.ranges import Range
from benchmark.clients.privacy import NoisyGradients, private_gradient
from benchmark.plugins import ClientStep, Defense
from benchmark.scenario import Scenario
from benchmark.types import Capability, PublicParameters, Update


@dataclass(frozen=True, kw_only=True)
class DPDM(NoisyGradients, Defense):
    """Parameters, beside those of `GaussianMechanism`.

    Attributes:
        draws: noise multiplicity K.
    """

    hides: ClassVar[frozenset[Capability]] = frozenset({Capability.TIMESTEP, Capability.NOISE})

    draws: Annotated[int, Range(1, 10_000)] = 8

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`."""
        step = step.redrawn(self.draws, generator)
        return private_gradient(step, self.clip, self.noise_multiplier, generator, self.draws)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return dataclasses.replace(super().public(scenario), draws_per_image=self.draws)
