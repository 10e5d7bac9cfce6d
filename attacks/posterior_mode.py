"""The most likely image behind a noisy update: the likelihood under the disclosed noise, times a diffusion prior.

Source: after the abstracts of Huang et al. 2024 (arXiv 2411.03053) and Meng et al. 2025 (arXiv 2511.10423)

The abstracts describe diffusion models, guided by gradients, that reconstruct images from updates with Gaussian noise. We take
from them only the idea that the denoising of a diffusion model compensates for such noise. All details are ours:

- If the defense discloses its noise, the likelihood is || clip(g) - g* ||^2 / (2 sigma^2). The guessed gradient is clipped as
  the client clips it. This is exact for one image in one step of one client with a batch of fixed size. Otherwise the gradient
  of the mean is clipped, since the gradients of single images are not available. Unlike the client, the attack does not divide
  a Poisson batch by its expected size. Other defenses have likelihoods of their own (`benchmark.matching.defense_aware`). If
  sigma is 0 or not disclosed, its most likely value is used: N / 2 log || clip(g) - g* ||^2 for N coordinates.
- If a gradient is the mean over K private draws of noise and timestep (`dpdm`), the guess is a mean over K draws too. The
  attack draws its own noise. If all draws share one timestep and it can be read, the attack uses it. Otherwise it uses the
  middles of K equal parts of the range that clients train on.
- The prior is Gaussian around an anchor image. The difference to the anchor is smooth (neighbouring pixels are similar, as in
  images), and all pixels are near the anchor. For the first half of the budget the anchor is the mean colour of public images.
  For each of the last two quarters it is the denoiser's estimate of the clean image, given the current image at noise of
  standard deviation 0.3, then 0.15 (`NOISE_LEVELS`).
- Each part is minimised by L-BFGS with a strong Wolfe line search from the current image. The result is the mode, not a
  sample. A sample would score as badly as `prior_sample` if the update carries no information.

We chose levels and smoothness on four training images of CIFAR-10 at 16x16, t = 200, `tiny:trained`, under `dp_sgd` with noise
multipliers 0.003 and 0.03. Guidance of the sampler's own steps, without the prior's derivative, did worse at both multipliers.
The diffusion loss as a regulariser did worse at 0.003 and equally well at 0.03. Smoothness has most of the effect. The
comparison is with smoothness alone, around the mean colour for the whole budget of 120. The prior (trained on three scenes)
added about 1 dB on three images at 0.003 and lost 9 dB on the fourth. At 0.03 it lost 0.2 dB on average. So it is not shown
that the prior helps.

The attack assumes that the timestep is known. A private one is read in closed form (`benchmark.closed_form.timesteps`); if
that is refused, nothing is reconstructed. Private noise is searched jointly with the images, with || eps ||^2 / 2, its own
negative log-density. The attack is skipped if no prior is granted. The loss in a row is the loss of the last quarter, prior
included.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation, and two forward passes of
the prior in all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from benchmark.base.ranges import MAX_NUMBER, NonNegative, Range
from benchmark.closed_form.timesteps import UnreadableTimesteps, read_timesteps, with_timesteps
from benchmark.diffusion.sampler import denoise
from benchmark.matching.defense_aware import LIKELIHOOD_PARAMETERS, likelihood, match_defense_aware
from benchmark.matching.engine import Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import CleanGuess, Guess, Stack, clean_guess, gaussian_start, mean_colour_start, start_variables
from benchmark.matching.search import Solution, Variables
from benchmark.outlook import Diagnosis, Outlook, refusal_or_unknown
from benchmark.plugins import MatchingAttack
from benchmark.types import Capability, Observation, Reconstruction

NOISE_LEVELS = (0.3, 0.15)
"""Standard deviations of the noise that the prior assumes in the current image, in units of the image range [-1, 1]."""

ANCHOR_CHANGES = (0.5, 0.75)
"""Shares of the budget after which the anchor changes."""

NEARNESS = 0.1
"""Weight of a pixel's own distance to the anchor, as a share of the weight of a difference of neighbours."""


@dataclass(frozen=True, kw_only=True)
class PosteriorMode(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, at least one for each anchor.
        smoothness: weight of squared differences of neighbouring pixels against the log-likelihood.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.PRIOR})
    adapts_to: ClassVar[frozenset[str]] = LIKELIHOOD_PARAMETERS | {"draws_per_image", "least_timestep"}

    evaluations: Annotated[int, Range(3, MAX_NUMBER)] = 300
    smoothness: NonNegative = 10.0

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        repeated = [observation for observation in observations if observation.public.draws_per_image]
        once = [observation for observation in observations if not observation.public.draws_per_image]
        # If clients draw several times per image, local steps are treated as one batch, see `problem.unrolls_local_steps`.
        several = iter(
            self._search([dataclasses.replace(observation, order_known=False) for observation in repeated], generator)
        )
        single = iter(with_timesteps(once, lambda known: self._search(known, generator), adaptive=True))
        return [next(several if observation.public.draws_per_image else single) for observation in observations]

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        return refusal_or_unknown(diagnosis.adapted)

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        found = [Solution(_start(observation, generator), 0.0, 0) for observation in observations]
        edges = [0, *(int(share * self.evaluations) for share in ANCHOR_CHANGES), self.evaluations]
        for level, (begin, end) in zip((None, *NOISE_LEVELS), itertools.pairwise(edges), strict=True):
            starts = [_with_anchor(observation, so_far, level) for observation, so_far in zip(observations, found, strict=True)]
            tasks = [Task(observation, start, end - begin) for observation, start in zip(observations, starts, strict=True)]
            solved = match_defense_aware(tasks, _guess, likelihood, lbfgs, self._negative_log_prior)
            found = [new.after(so_far) for new, so_far in zip(solved, found, strict=True)]
        return [solution.reconstruction() for solution in found]

    def _negative_log_prior(self, variables: Variables) -> Tensor:
        """Return the negative log-density (P,) of images around their fixed anchors, and of the noise if it is searched."""
        difference = variables["x_0"] - variables["anchor"].detach()
        down = _squared_norm(difference[..., 1:, :] - difference[..., :-1, :])
        across = _squared_norm(difference[..., 1:] - difference[..., :-1])
        penalty = self.smoothness * (down + across + NEARNESS * _squared_norm(difference))
        return penalty + _squared_norm(variables["eps"]) / 2 if "eps" in variables else penalty


def _start(observation: Observation, generator: torch.Generator) -> Variables:
    if draws := observation.public.draws_per_image:
        noise = torch.stack([gaussian_start(observation, generator) for _ in range(draws)], 1).flatten(0, 1)
        return {
            "anchor": mean_colour_start(observation),
            "x_0": mean_colour_start(observation),
            "draws": noise,
            "at": timesteps_of_draws(observation, draws).repeat(observation.image_count),
        }
    return {"anchor": mean_colour_start(observation), **start_variables(observation, mean_colour_start(observation), generator)}


def timesteps_of_draws(observation: Observation, draws: int) -> Tensor:
    """Return timesteps (draws,) for one image.

    They are the common timestep of all draws if it can be read, else evenly spaced over the range that clients train on.
    """
    with suppress(UnreadableTimesteps):
        times = read_timesteps(observation).timesteps
        if bool((times == times[0]).all()):
            return times[:1].expand(draws).float()
    least, steps = observation.public.least_timestep or 0, observation.schedule.steps
    return least + (torch.arange(draws, device=observation.network.device) + 0.5) / draws * (steps - least)


def _guess(variables: Variables, known: Stack) -> Guess:
    """Return the guess of `clean_guess`, or one with every image at each of its draws, which stay fixed."""
    if "draws" not in variables:
        return clean_guess(variables, known)
    noise, images = variables["draws"].detach(), variables["x_0"]
    each = images.repeat_interleave(noise.shape[1] // images.shape[1], dim=1)
    return CleanGuess(each, variables["at"].detach().long(), noise)


@torch.no_grad()
def _with_anchor(observation: Observation, found: Solution, level: float | None) -> Variables:
    """Return the variables with a new anchor: the prior's estimate at a noise level, or the old anchor if `level` is None."""
    if level is None:
        return found.variables
    assert observation.prior is not None
    return {
        **found.variables,
        "anchor": denoise(observation.prior.network, observation.prior.schedule, found.variables["x_0"], level),
    }


def _squared_norm(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)
