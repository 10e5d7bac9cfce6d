"""GIDM+: image, noise and timestep searched together, where the client keeps noise and timestep to itself.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

The abstract names a joint triple optimisation. How it goes on is ours throughout, the relaxation and the schedule included:

1. All three together: Adam on the mean of the layers' cosine distances. The timestep is a softmax over all T of them, mixing
   their embeddings and their alpha_bar, from equal weights, or none for those that the defense is known to leave out. Every
   layer counts alike, so that those of the time embedding have a say; with the plain distance the timestep was missed in
   trials on training images of CIFAR-10.
2. The timestep is then the likeliest one, and image and noise go on together: L-BFGS with a strong Wolfe line search on
   the squared distance.

Nothing of the truth is in any initial value: the image starts at the mean colour of public images, the noise at N(0, 1). In
the reference code (github GillHuang-Xtler/GIDM_diffusion_inversion at commit 3dcd42d) the noise starts at the truth plus 1e-4
randn and stays there, and the timestep, which gets no gradient, is the truth from the start; the defense `near_noise` is that
scene.

No prior is used: searching a latent instead of pixels, the first phase missed timesteps in the same trials. What the client
does grant is used as it is; where the timestep is granted, all of the budget goes to the second phase.

Shapes: images (B, C, H, W), unbounded. Cost: one double backward through the network per evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from benchmark.base.ranges import LARGEST, InnerShare, Positive, Range
from benchmark.diffusion.loss import Forward, losses
from benchmark.diffusion.process import Mixture, Process
from benchmark.matching.adam import adam
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import layerwise_cosine_distance, squared_distance
from benchmark.matching.problem import Guess, Stack, flat, granted, unknowns
from benchmark.matching.search import Solution, Variables
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction

UNMIXED = "the timestep is private, and the network does not mix time embeddings"

OUT = -1e4
"""The logit of a timestep whose weight is zero."""


@dataclass(frozen=True, kw_only=True)
class GIDMPlus(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, both phases together.
        joint_share: share of the budget for the first phase.
        lr: step of Adam for image and noise, in units of the image range [-1, 1] and of the noise's deviation.
        timestep_lr: step of Adam for the logits of the timestep.
    """

    adapts_to: ClassVar[frozenset[str]] = frozenset({"least_timestep"})

    evaluations: Annotated[int, Range(2, LARGEST)] = 1000
    joint_share: InnerShare = 0.4
    lr: Positive = 0.05
    timestep_lr: Positive = 0.3

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        tasks = [Task(seen, unknowns(seen, flat(seen), generator), self.evaluations) for seen in observations]
        going = [task for task in tasks if task.seen.timesteps is not None or task.seen.network.mixes]
        private = [task for task in going if task.seen.timesteps is None]
        joint = dict(zip(private, self._joint(private), strict=True))
        found = match([_after(task, joint.get(task)) for task in going], granted, squared_distance, lbfgs)
        rebuilt = {task: _rebuilt(solution, joint.get(task)) for task, solution in zip(going, found, strict=True)}
        return [rebuilt.get(task) or Reconstruction(task.start["x_0"], 0, diverged=UNMIXED) for task in tasks]

    def _joint(self, tasks: Sequence[Task]) -> list[Solution]:
        """The first phase: image, noise and the logits (B, T) of the timestep."""
        evaluations = min(max(1, round(self.joint_share * self.evaluations)), self.evaluations - 1)
        tasks = [dataclasses.replace(task, start=_with_logits(task), evaluations=evaluations) for task in tasks]
        rates = {"x_0": self.lr, "eps": self.lr, "logits": self.timestep_lr}
        return match(tasks, _relaxed, layerwise_cosine_distance, partial(adam, lr=rates))


def _with_logits(task: Task) -> Variables:
    return {**task.start, "logits": _equal(task.seen)}


def _equal(seen: Observation) -> Tensor:
    """(N, T) logits that weigh all timesteps alike, but for those that no client trains on."""
    logits = torch.zeros(seen.image_count, seen.schedule.steps, device=seen.network.device)
    logits[:, : seen.public.least_timestep or 0] = OUT
    return logits


def _after(task: Task, joint: Solution | None) -> Task:
    """The second phase: from where the first came to, with its likeliest timestep taken for granted."""
    if joint is None:
        return task
    start = {name: joint.variables[name] for name in task.start}
    believed = dataclasses.replace(task.seen, timesteps=joint.variables["logits"].argmax(dim=-1))
    return Task(believed, start, task.evaluations - joint.evaluations)


def _rebuilt(found: Solution, joint: Solution | None) -> Reconstruction:
    """What was found, with the likeliest timestep where that was private; equal logits name none."""
    if joint is None:
        return found.reconstruction()
    logits = joint.variables["logits"]
    moved = bool((logits.amax(-1) > 0).any())
    return dataclasses.replace(found.after(joint).reconstruction(), timesteps=logits.argmax(dim=-1) if moved else None)


@dataclass(frozen=True, eq=False)
class RelaxedGuess(Guess):
    """Images, relaxed timesteps and noise.

    Attributes:
        x_0: (P, N, C, H, W) images.
        weights: (P, N, T) over the timesteps.
        eps: (P, N, C, H, W) noise.
    """

    x_0: Tensor
    weights: Tensor
    eps: Tensor

    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """See `Guess.losses`: the client's own training losses."""
        x_0, weights, eps = (part.flatten(0, 1) for part in self.parts())
        return losses(network, schedule, x_0, Mixture(weights), eps).view(self.x_0.shape[:2])


def _relaxed(variables: Variables, known: Stack) -> Guess:
    noise = known.noise if known.noise is not None else variables["eps"]
    return RelaxedGuess(variables["x_0"], torch.softmax(variables["logits"], dim=-1), noise)
