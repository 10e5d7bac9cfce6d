"""DP-SGD: each example's gradient is clipped, Gaussian noise is added to the sum, and the mean leaves the client.

Source: after the abstract of Abadi et al. 2016 (arXiv 1607.00133), as implemented by Opacus

Opacus' `DPOptimizer` clips and adds noise. Per-example gradients come from Opacus' functorch path: its hand-written hooks
give zero for convolutions that see channels-last activations, as those of a diffusers U-Net do.

The guarantee is for one image added or removed. Epsilon comes from Opacus' PRV accountant (Gopi et al. 2021, arXiv
2106.02848), an upper bound; above 100 from its looser RDP accountant. A sample rate below 1 needs Poisson-sampled batches.
Sampling of clients amplifies nothing here: the server, who attacks, knows who takes part.

A client that takes E local steps clips and adds noise at each of them, so a round counts as E uses of the mechanism; that
bounds epsilon from above where batches are disjoint. A sum with other clients changes no client's own guarantee: nothing is
made of their noise.

Cost: one gradient per example, in memory B times the network.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from benchmark.federation import ClientStep
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import Privacy, PublicParameters, Update

PRV_ERROR = 0.01
"""How far the PRV accountant's epsilon may lie above the truth."""

LARGEST_PRV_EPSILON = 100.0
"""Above this the PRV accountant's grid outgrows memory, and no one asks for two more digits of a broken guarantee."""


SMALLEST_DELTA = 1e-12
"""Below this the PRV accountant's own numerical error is of delta's size."""


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
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be at least 0 and finite, not {self.noise_multiplier:g}")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be above 0 and finite, not {self.clip:g}")
        if not SMALLEST_DELTA <= self.delta < 1:
            raise ValueError(f"delta must be from {SMALLEST_DELTA:g} to below 1, not {self.delta:g}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`: (sum of clipped per-example gradients + noise) / expected batch size."""
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        network = step.network
        noise_seed = int(torch.randint(2**62, (), generator=generator))
        wrapped = GradSampleModule(network, force_functorch=True)
        try:
            _train_without_dropout(wrapped)
            optimiser = DPOptimizer(
                torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.0),
                noise_multiplier=self.noise_multiplier,
                max_grad_norm=self.clip,
                expected_batch_size=step.expected_batch_size,
                generator=torch.Generator(network.device).manual_seed(noise_seed),
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch on backward hooks whose input needs no gradient
                step.loss(wrapped).backward()
            optimiser.pre_step()
            return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        finally:
            wrapped.to_standard_module()
            network.zero_grad(set_to_none=True)
            network.eval()

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; the noise is that of each coordinate of the mean over examples, local steps and clients."""
        one_step = self.noise_multiplier * self.clip / scenario.batch_size
        return PublicParameters(clip_norm=self.clip, noise_std=one_step / math.sqrt(scenario.batches))

    def privacy(self, scenario: Scenario) -> Privacy:
        """See `Defense.privacy`; without noise epsilon is infinite."""
        steps = scenario.local_steps
        one, one_by = epsilon(self.noise_multiplier, scenario.sample_rate, steps, self.delta)
        total, total_by = epsilon(self.noise_multiplier, scenario.sample_rate, self.rounds * steps, self.delta)
        return Privacy(
            epsilon_round=one,
            epsilon_total=total,
            delta=self.delta,
            sample_rate=scenario.sample_rate,
            rounds=self.rounds,
            adjacency="add or remove one image",
            accountant=one_by if one_by == total_by else f"{one_by} (round), {total_by} (total)",
        )


def _train_without_dropout(module: torch.nn.Module) -> None:
    """Opacus records nothing in evaluation mode; only dropout would make training mode another function."""
    module.train()
    for child in module.modules():
        if isinstance(child, torch.nn.modules.dropout._DropoutNd):
            child.eval()


@cache
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> tuple[float, str]:
    """Epsilon of so many steps of the subsampled Gaussian mechanism, and the accountant that bounds it."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    if noise_multiplier == 0:
        return math.inf, "none"
    history = [(noise_multiplier, sample_rate, steps)]
    if sample_rate == 1:  # steps of the plain Gaussian mechanism are one of it with less noise
        history = [(noise_multiplier / math.sqrt(steps), 1.0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the RDP accountant on its range of orders, where the bound stays valid
        rdp = RDPAccountant()
        rdp.history = history
        bound = max(0.0, float(rdp.get_epsilon(delta)))
        if bound > LARGEST_PRV_EPSILON:
            return bound, "RDP"
        prv = PRVAccountant()
        prv.history = history
        return max(0.0, float(prv.get_epsilon(delta, eps_error=PRV_ERROR))), "PRV"
