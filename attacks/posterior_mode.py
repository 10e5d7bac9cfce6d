"""The likeliest image behind a noisy update: its likelihood under the disclosed noise, times what a diffusion prior believes.

Source: after the abstracts of Huang et al. 2024 (arXiv 2411.03053) and Meng et al. 2025 (arXiv 2511.10423)

The abstracts name diffusion models that gradients guide, to rebuild images from updates with Gaussian noise. That the
denoising of a diffusion model makes up for such noise is all that is taken from them. How is ours throughout:

- Where the defense discloses its noise the likelihood is || clip(g) - g* ||^2 / (2 sigma^2), the guessed gradient clipped as
  the client clips: exact for one image in one step of one client with a batch of fixed size. Else the gradient of the mean is
  clipped, since single gradients are not at hand, and a Poisson batch is not divided by its expected size as the client does.
  Other defenses have likelihoods of their own (`benchmark.matching.defense_aware`). Where sigma is not disclosed or 0, its most
  likely value is put in: N / 2 log || clip(g) - g* ||^2 for N coordinates.
- Where a gradient is the mean over K private draws of noise and timestep (`dpdm`), the guess is a mean over K draws too: noise
  of the attack's own, and the timestep that all draws have, where one can be read, else K in the middles of equal parts of what
  clients train on.
- The belief is Gaussian around an anchor: differences of neighbouring pixels are small, as they are in images, and all
  pixels lie near. The first half of the budget has the mean colour of public images for its anchor; two quarters then have what
  the prior sees in the image so far at noise of deviation 0.3, then 0.15 (`LEVELS`), its estimate of the clean image.
- Each is minimised by L-BFGS with a strong Wolfe line search from the image so far: the mode, not a sample, which would score
  as badly as `prior_sample` where the update tells nothing.

Levels and smoothness were chosen on four training images of CIFAR-10 at 16x16, t = 200, `tiny:trained`, under `dp_sgd` with
noise multipliers 0.003 and 0.03. Guidance of the sampler's own steps, without the prior's derivative, stayed behind at both;
the diffusion loss as a regulariser stayed behind at 0.003 and was level at 0.03. Smoothness does most of the work: against it
alone, around the mean colour for the whole budget of 120, the prior (of three scenes) added about 1 dB on three images at 0.003
and lost 9 dB on the fourth, and took 0.2 dB in the mean at 0.03. That the prior helps is not shown.

Assumes the timestep is known; a private one is read in closed form (`benchmark.closed_form.timesteps`), and where that is
refused nothing is rebuilt. Where the noise is private it is searched jointly with the images, with || eps ||^2 / 2, its own
negative log-density. Skipped where no prior is granted. The loss that a row shows is that of the last quarter, belief included.

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

from benchmark.base.ranges import LARGEST, NonNegative, Range
from benchmark.closed_form.timesteps import Unreadable, read_timesteps, with_timesteps
from benchmark.diffusion.sampler import estimate
from benchmark.matching.defense_aware import LIKELIHOOD_PARAMETERS, likelihood, match_defense_aware
from benchmark.matching.engine import Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import CleanGuess, Guess, Stack, flat, gaussian, granted, unknowns
from benchmark.matching.search import Solution, Variables
from benchmark.plugins import MatchingAttack
from benchmark.types import Capability, Observation, Reconstruction

LEVELS = (0.3, 0.15)
"""Deviations of the noise that the prior is to see in the image so far, in units of the image range [-1, 1]."""

SHARES = (0.5, 0.75)
"""Shares of the budget after which the anchor changes."""

NEARNESS = 0.1
"""Weight of a pixel's own distance to the anchor, as a share of that of a difference of neighbours."""


@dataclass(frozen=True, kw_only=True)
class PosteriorMode(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, at least one for each anchor.
        smoothness: weight of squared differences of neighbouring pixels against the log-likelihood.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.PRIOR})
    adapts_to: ClassVar[frozenset[str]] = LIKELIHOOD_PARAMETERS | {"draws_per_image", "least_timestep"}

    evaluations: Annotated[int, Range(3, LARGEST)] = 300
    smoothness: NonNegative = 10.0

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        drawn = [seen for seen in observations if seen.public.draws_per_image]
        once = [seen for seen in observations if not seen.public.draws_per_image]
        # The local steps of clients who draw several times are read as one batch, see `problem.step_by_step`.
        several = iter(self._search([dataclasses.replace(seen, order_known=False) for seen in drawn], generator))
        single = iter(with_timesteps(once, lambda told: self._search(told, generator)))
        return [next(several if seen.public.draws_per_image else single) for seen in observations]

    def _search(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        found = [Solution(_start(seen, generator), 0.0, 0) for seen in observations]
        edges = [0, *(int(share * self.evaluations) for share in SHARES), self.evaluations]
        for level, (begin, end) in zip((None, *LEVELS), itertools.pairwise(edges), strict=True):
            starts = [_anchored(seen, so_far, level) for seen, so_far in zip(observations, found, strict=True)]
            tasks = [Task(seen, start, end - begin) for seen, start in zip(observations, starts, strict=True)]
            solved = match_defense_aware(tasks, _guess, likelihood, lbfgs, self._belief)
            found = [new.after(so_far) for new, so_far in zip(solved, found, strict=True)]
        return [solution.reconstruction() for solution in found]

    def _belief(self, variables: Variables) -> Tensor:
        """(P,) the negative log-density of images around their anchors, and of noise that is searched; the anchors stay."""
        off = variables["x_0"] - variables["anchor"].detach()
        neighbours = _energy(off[..., 1:, :] - off[..., :-1, :]) + _energy(off[..., 1:] - off[..., :-1])
        belief = self.smoothness * (neighbours + NEARNESS * _energy(off))
        return belief + _energy(variables["eps"]) / 2 if "eps" in variables else belief


def _start(seen: Observation, generator: torch.Generator) -> Variables:
    if draws := seen.public.draws_per_image:
        noise = torch.stack([gaussian(seen, generator) for _ in range(draws)], 1).flatten(0, 1)
        return {"anchor": flat(seen), "x_0": flat(seen), "draws": noise, "at": _spread(seen, draws).repeat(seen.image_count)}
    return {"anchor": flat(seen), **unknowns(seen, flat(seen), generator)}


def _spread(seen: Observation, draws: int) -> Tensor:
    """(draws,) timesteps for one image: the one that all have, where it can be read, else evenly over what clients train on."""
    with suppress(Unreadable):
        times = read_timesteps(seen).timesteps
        if bool((times == times[0]).all()):
            return times[:1].expand(draws).float()
    least, steps = seen.public.least_timestep or 0, seen.schedule.steps
    return least + (torch.arange(draws, device=seen.network.device) + 0.5) / draws * (steps - least)


def _guess(variables: Variables, known: Stack) -> Guess:
    """As `granted`, or with every image at each of its draws, which stay as they are."""
    if "draws" not in variables:
        return granted(variables, known)
    noise, images = variables["draws"].detach(), variables["x_0"]
    each = images.repeat_interleave(noise.shape[1] // images.shape[1], dim=1)
    return CleanGuess(each, variables["at"].detach().long(), noise)


@torch.no_grad()
def _anchored(seen: Observation, found: Solution, level: float | None) -> Variables:
    """What was found, with what the prior sees in it at that level for its anchor; the one it has where there is no level."""
    if level is None:
        return found.variables
    assert seen.prior is not None
    return {**found.variables, "anchor": estimate(seen.prior.network, seen.prior.schedule, found.variables["x_0"], level)}


def _energy(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)
