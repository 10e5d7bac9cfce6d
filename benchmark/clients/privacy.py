"""Differential privacy: the noisy sum of clipped per-example gradients, and the guarantees of Gaussian noise.

Opacus' `DPOptimizer` clips gradients and adds noise. Per-example gradients come from Opacus' functorch path. Opacus'
hand-written hooks give zero for convolutions with channels-last inputs, and a diffusers U-Net has such convolutions.

Opacus' PRV accountant (Gopi et al. 2021, arXiv 2106.02848) gives an upper bound on epsilon. The looser bound of its RDP
accountant (Mironov 2017, arXiv 1702.07476) is reported as well. If the RDP bound exceeds 100, it is the only one.
Sampling of clients does not amplify privacy, because the attacking server knows which clients take part.
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
"""Error that the PRV accountant may make in epsilon. The upper end of its result is reported."""

MAX_PRV_EPSILON = 100.0
"""Largest RDP epsilon for which the PRV accountant runs. Above it, the accountant's grid does not fit into memory.

So large an epsilon gives no meaningful protection, so a tighter bound is not needed.
"""


MIN_DELTA = 1e-12
"""Smallest delta that is allowed. Below it, the numerical error of the PRV accountant is about as large as delta."""


@dataclass(frozen=True, kw_only=True)
class GaussianMechanism(Defense):
    """The parameters of a defense that clips and then adds Gaussian noise. A plugin must also inherit from `Defense`.

    Attributes:
        noise_multiplier: standard deviation of the noise in units of `clip`. The noise is added to the clipped update, or to
            the sum of the clipped gradients.
        clip: l2 norm to which each example's gradient, or a client's update, is clipped.
        delta: probability that the guarantee fails.
        rounds: number of rounds that `epsilon_total` composes.
    """

    noise_multiplier: NonNegative = 1.0
    clip: Positive = 1.0
    delta: Annotated[float, Range(MIN_DELTA, 1, below=True)] = 1e-5
    rounds: Count = 100


class NoisyGradients(GaussianMechanism):
    """Base class of `dp_sgd` and `dpdm`. They differ only in how they compute the gradient of an example."""

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """Check that the network allows per-example gradients and return it unchanged. See `Defense.prepare`."""
        check_per_example(network)
        return network

    def public(self, scenario: Scenario) -> PublicParameters:
        """Return the clipping norm and the standard deviation of the noise. See `Defense.public`.

        The noise is per coordinate of the mean over examples, local steps and clients.
        """
        one_step = self.noise_multiplier * self.clip / scenario.batch_size
        return PublicParameters(clip_norm=self.clip, noise_std=one_step / math.sqrt(scenario.batches))

    def privacy(self, scenario: Scenario) -> Privacy:
        """Return the guarantee for adding or removing one image. See `Defense.privacy`."""
        return guarantee(
            self.noise_multiplier,
            scenario.sample_rate,
            scenario.local_steps,
            self.rounds,
            self.delta,
            "add or remove one image",
        )


def check_per_example(network: Denoiser) -> None:
    """Check that a network has trainable parameters and allows per-example gradients.

    Raises:
        UserError: no parameter is trainable, a layer mixes the examples of a batch, or Opacus does not support a layer.
    """
    from opacus.validators import ModuleValidator

    if not any(p.requires_grad for p in network.parameters()):
        raise UserError("the model has no parameters to train")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"the model's layer '{name}' ({type(module).__name__}) mixes the examples of a batch, so no per-example "
                "gradients exist: use a model with GroupNorm instead"
            )
    network.train()
    try:
        problems = ModuleValidator.validate(network, strict=False)
    finally:
        network.eval()
    if problems:
        raise UserError(f"Opacus cannot compute per-example gradients of the model: {first_line(problems[0])}")


def private_gradient(
    step: ClientStep, clip: float, noise_multiplier: float, generator: torch.Generator, draws: int = 1
) -> Update:
    """Return (sum of clipped per-example gradients + noise) / expected batch size.

    Args:
        step: the local step. Each image must occur `draws` times in a row.
        clip: l2 norm to which each example's gradient is clipped.
        noise_multiplier: standard deviation of the noise on the sum, in units of `clip`.
        generator: the defense's random stream.
        draws: number of draws of noise and timestep per image. An example's gradient is the mean over them.
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
            warnings.simplefilter("ignore")  # torch warns of backward hooks whose input needs no gradient
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
    """Return the privacy guarantee of repeated uses of the Gaussian mechanism. Without noise, epsilon is infinite.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity.
        sample_rate: probability that a unit takes part in one use, by Poisson sampling; 1 if every unit always does.
        steps: uses per round.
        rounds: total number of rounds.
        delta: probability that the guarantee fails.
        adjacency: the neighbouring relation as tables show it.
    """
    per_round, round_accountant = epsilon(noise_multiplier, sample_rate, steps, delta)
    total, total_accountant = epsilon(noise_multiplier, sample_rate, rounds * steps, delta)
    same_accountant = round_accountant == total_accountant
    return Privacy(
        epsilon_round=per_round,
        epsilon_total=total,
        epsilon_round_rdp=rdp_epsilon(noise_multiplier, sample_rate, steps, delta),
        epsilon_total_rdp=rdp_epsilon(noise_multiplier, sample_rate, rounds * steps, delta),
        delta=delta,
        sample_rate=sample_rate,
        sampling="none" if sample_rate == 1 else "Poisson",
        rounds=rounds,
        adjacency=adjacency,
        accountant=round_accountant if same_accountant else f"{round_accountant} (round), {total_accountant} (total)",
    )


def _train_without_dropout(module: nn.Module) -> None:
    """Set training mode, except for dropout.

    Opacus records no gradients in evaluation mode. Dropout alone would change the function in training mode.
    """
    module.train()
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.eval()


@cache
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> tuple[float, str]:
    """Return an upper bound on epsilon after `steps` uses of the subsampled Gaussian mechanism, and the accountant's name."""
    from opacus.accountants import PRVAccountant

    rdp_bound = rdp_epsilon(noise_multiplier, sample_rate, steps, delta)
    if rdp_bound == math.inf:
        return rdp_bound, "none"
    if rdp_bound > MAX_PRV_EPSILON:
        return rdp_bound, "RDP"
    prv = PRVAccountant()
    prv.history = _opacus_history(noise_multiplier, sample_rate, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max(0.0, float(prv.get_epsilon(delta, eps_error=PRV_ERROR))), "PRV"


@cache
def rdp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return the RDP accountant's upper bound on epsilon after `steps` uses of the subsampled Gaussian mechanism."""
    from opacus.accountants import RDPAccountant

    if noise_multiplier == 0:
        return math.inf
    rdp = RDPAccountant()
    rdp.history = _opacus_history(noise_multiplier, sample_rate, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its range of orders; the bound is valid anyway
        return max(0.0, float(rdp.get_epsilon(delta)))


def _opacus_history(noise_multiplier: float, sample_rate: float, steps: int) -> list[tuple[float, float, int]]:
    """Return the steps in the format of Opacus' accountants.

    Without subsampling, several uses of the Gaussian mechanism equal one use with less noise.
    """
    if sample_rate == 1:
        return [(noise_multiplier / math.sqrt(steps), 1.0, 1)]
    return [(noise_multiplier, sample_rate, steps)]
