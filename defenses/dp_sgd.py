"""DP-SGD: each example's gradient is clipped, Gaussian noise is added to the sum, and the mean leaves the client.

Source: after the abstract of Abadi et al. 2016 (arXiv 1607.00133), as implemented by Opacus

The guarantee is for one image added or removed (`benchmark.privacy`). A sample rate below 1 needs Poisson-sampled batches.

A client that takes E local steps clips and adds noise at each of them, so a round counts as E uses of the mechanism; that
bounds epsilon from above where batches are disjoint. A sum with other clients changes no client's own guarantee: nothing is
made of their noise.

Cost: one gradient per example, in memory B times the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmark.diffusion.denoiser import Denoiser
from benchmark.federation import ClientStep
from benchmark.plugins import Defense
from benchmark.privacy import check_mechanism, check_per_example, guarantee, private_gradient
from benchmark.scenario import Scenario
from benchmark.types import Privacy, PublicParameters, Update


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """Parameters.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum of gradients, in units of `clip`.
        clip: l2 norm that each example's gradient is clipped to.
        delta: probability that the guarantee fails, in (0, 1).
        rounds: rounds that `epsilon_total` composes.
    """

    noise_multiplier: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    rounds: int = 100

    def __post_init__(self) -> None:
        check_mechanism(self.noise_multiplier, self.clip, self.delta, self.rounds)

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`; a network whose examples have no gradients of their own is refused."""
        check_per_example(network)
        return network

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`."""
        return private_gradient(step, self.clip, self.noise_multiplier, generator)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; the noise is that of each coordinate of the mean over examples, local steps and clients."""
        one_step = self.noise_multiplier * self.clip / scenario.batch_size
        return PublicParameters(clip_norm=self.clip, noise_std=one_step / math.sqrt(scenario.batches))

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
