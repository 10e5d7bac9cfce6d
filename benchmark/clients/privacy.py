"""Differential privacy: the noisy sum of clipped per-example gradients, and what it and other Gaussian noise guarantee.

Opacus' `DPOptimizer` clips and adds noise. Per-example gradients come from Opacus' functorch path: its hand-written hooks
give zero for convolutions that see channels-last activations, as those of a diffusers U-Net do.

Epsilon comes from Opacus' PRV accountant (Gopi et al. 2021, arXiv 2106.02848), an upper bound, beside that of its RDP
accountant (Mironov 2017, arXiv 1702.07476), which is looser; above 100 from the RDP accountant alone. Sampling of clients
amplifies nothing: the server, who attacks, knows who takes part.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from torch import nn

from benchmark.base.errors import UserError, first_line
from benchmark.base.ranges import Count, NonNegative, Positive, Range
from benchmark.diffusion.denoiser import Denoiser
from benchmark.plugins import ClientStep, Defense
from benchmark.scenario import Scenario
from benchmark.types import Privacy, PublicParameters, Update

PRV_ERROR = 0.01
"""How far the PRV accountant's epsilon may lie above the truth."""

LARGEST_PRV_EPSILON = 100.0
"""Above this the PRV accountant's grid outgrows memory, and no one asks for two more digits of a broken guarantee."""


SMALLEST_DELTA = 1e-12
"""Below this the PRV accountant's own numerical error is of delta's size."""


@dataclass(frozen=True, kw_only=True)
class GaussianMechanism(Defense):
    """Something is clipped, and Gaussian noise comes on top. A plugin names `Defense` as a base too.

    Attributes:
        noise_multiplier: standard deviation of the noise on what was clipped, or on the sum of it, in units of `clip`.
        clip: l2 norm that each example's gradient, or a client's update, is clipped to.
        delta: probability that the guarantee fails.
        rounds: rounds that `epsilon_total` composes.
    """

    noise_multiplier: NonNegative = 1.0
    clip: Positive = 1.0
    delta: Annotated[float, Range(SMALLEST_DELTA, 1, below=True)] = 1e-5
    rounds: Count = 100


class NoisyGradients(GaussianMechanism):
    """What `dp_sgd` and `dpdm` share: all but how an example's gradient comes about."""

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`; a network whose examples have no gradients of their own is refused."""
        check_per_example(network)
        return network

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; the noise is that of each coordinate of the mean over examples, local steps and clients."""
        one_step = self.noise_multiplier * self.clip / scenario.batch_size
        return PublicParameters(clip_norm=self.clip, noise_std=one_step / math.sqrt(scenario.batches))

    def privacy(self, scenario: Scenario) -> Privacy:
        """See `Defense.privacy`: for one image added or removed."""
        return guarantee(
            self.noise_multiplier,
            scenario.sample_rate,
            scenario.local_steps,
            self.rounds,
            self.delta,
            "add or remove one image",
        )


def check_per_example(network: Denoiser) -> None:
    """Refuse a network whose examples have no gradients of their own.

    Raises:
        UserError: it has a layer that mixes examples, or none to train; with the layer and what helps.
    """
    from opacus.validators import ModuleValidator

    if not any(p.requires_grad for p in network.parameters()):
        raise UserError("the model has no parameters to train")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"the model's layer '{name}' ({type(module).__name__}) mixes the examples of a batch, so that they have no "
                "gradients of their own: use a model with GroupNorm in its place"
            )
    network.train()
    try:
        problems = ModuleValidator.validate(network, strict=False)
    finally:
        network.eval()
    if problems:
        raise UserError(f"Opacus cannot take the model's gradients by example: {first_line(problems[0])}")


def private_gradient(
    step: ClientStep, clip: float, noise_multiplier: float, generator: torch.Generator, draws: int = 1
) -> Update:
    """(sum of clipped per-example gradients + noise) / expected batch size.

    Args:
        step: whose images each come `draws` times in a row.
        clip: l2 norm that each example's gradient is clipped to.
        noise_multiplier: standard deviation of the noise on the sum, in units of `clip`.
        generator: the defense's random stream.
        draws: an example's gradient is the mean over so many draws.
    """
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    network = step.network
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    wrapped = GradSampleModule(network, force_functorch=True)
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        _train_without_dropout(wrapped)
        optimiser = DPOptimizer(
            torch.optim.SGD(trained, lr=0.0),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=step.scenario.batch_size,
            generator=torch.Generator(network.device).manual_seed(noise_seed),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on backward hooks whose input needs no gradient
            torch.autograd.backward(step.loss(wrapped))
        for p in trained:
            vars(p)["grad_sample"] = vars(p)["grad_sample"].unflatten(0, (-1, draws)).mean(1)
        optimiser.pre_step()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    finally:
        wrapped.to_standard_module()
        network.zero_grad(set_to_none=True)
        network.eval()


def guarantee(noise_multiplier: float, sample_rate: float, steps: int, rounds: int, delta: float, adjacency: str) -> Privacy:
    """What so many rounds of so many uses of the Gaussian mechanism guarantee; without noise epsilon is infinite.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity.
        sample_rate: probability of each unit to be in a use, by Poisson sampling; 1 for all of them.
        steps: uses in a round.
        rounds: in total.
        delta: probability that the guarantee fails.
        adjacency: the neighbouring relation, for tables.
    """
    one, one_by = epsilon(noise_multiplier, sample_rate, steps, delta)
    total, total_by = epsilon(noise_multiplier, sample_rate, rounds * steps, delta)
    return Privacy(
        epsilon_round=one,
        epsilon_total=total,
        epsilon_round_rdp=rdp_epsilon(noise_multiplier, sample_rate, steps, delta),
        epsilon_total_rdp=rdp_epsilon(noise_multiplier, sample_rate, rounds * steps, delta),
        delta=delta,
        sample_rate=sample_rate,
        sampling="none" if sample_rate == 1 else "Poisson",
        rounds=rounds,
        adjacency=adjacency,
        accountant=one_by if one_by == total_by else f"{one_by} (round), {total_by} (total)",
    )


def _train_without_dropout(module: nn.Module) -> None:
    """Opacus records nothing in evaluation mode; only dropout would make training mode another function."""
    module.train()
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.eval()


@cache
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> tuple[float, str]:
    """Epsilon of so many steps of the subsampled Gaussian mechanism, and the accountant that bounds it."""
    from opacus.accountants import PRVAccountant

    bound = rdp_epsilon(noise_multiplier, sample_rate, steps, delta)
    if bound == math.inf:
        return bound, "none"
    if bound > LARGEST_PRV_EPSILON:
        return bound, "RDP"
    prv = PRVAccountant()
    prv.history = _history(noise_multiplier, sample_rate, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(0.0, float(prv.get_epsilon(delta, eps_error=PRV_ERROR))), "PRV"


@cache
def rdp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Likewise, by the RDP accountant."""
    from opacus.accountants import RDPAccountant

    if noise_multiplier == 0:
        return math.inf
    rdp = RDPAccountant()
    rdp.history = _history(noise_multiplier, sample_rate, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on its range of orders, where the bound stays valid
        return max(0.0, float(rdp.get_epsilon(delta)))


def _history(noise_multiplier: float, sample_rate: float, steps: int) -> list[tuple[float, float, int]]:
    """As Opacus wants it. Steps of the plain Gaussian mechanism are one of it with less noise."""
    if sample_rate == 1:
        return [(noise_multiplier / math.sqrt(steps), 1.0, 1)]
    return [(noise_multiplier, sample_rate, steps)]
