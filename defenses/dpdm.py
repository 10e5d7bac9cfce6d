"""Noise multiplicity: an image's gradient is the mean over K draws of noise and timestep, which is then clipped and made noisy.

Source: after the abstract of Dockhorn, Cao, Vahdat and Kreis 2023 (TMLR, arXiv 2210.09929)

Everything else is as in `dp_sgd`. The guarantee is the same too, also over several local steps, since each image still
contributes one clipped gradient. The mean over K draws varies less, so a larger part of the clipped gradient is signal. If the
scenario fixes the timestep, all K draws use it. Otherwise each draw has its own.

The attack is granted neither the K draws nor their timesteps. K itself is public.

Cost: K gradients per example, with memory for K B gradients.
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
    """Hyper-parameters, in addition to those of `GaussianMechanism`.

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
