"""GIDM+: image, noise and timestep searched together, for clients that keep noise and timestep private.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

The abstract names a joint triple optimisation. All details are ours, including the relaxation and the schedule:

1. All three together: Adam minimises the mean of the layers' cosine distances. The timestep is a softmax over all T timesteps,
   which mixes their embeddings and their alpha_bar. All weights start equal, except that timesteps which the defense is known
   to exclude have weight zero. Every layer counts equally, so that the layers of the time embedding matter. With the plain
   distance the attack missed the timestep in trials on training images of CIFAR-10.
2. The timestep is fixed to its most likely value. L-BFGS with a strong Wolfe line search then continues with image and noise
   on the squared distance.

No initial value uses the truth: the image starts at the mean colour of public images, the noise at N(0, 1). In the reference
code (github GillHuang-Xtler/GIDM_diffusion_inversion at commit 3dcd42d) the noise starts at the truth plus 1e-4 randn and
stays there. The timestep there gets no gradient and is the truth from the start. The defense `near_noise` reproduces that
scene.

The attack uses no prior: with a latent in place of pixels, the first phase missed timesteps in the same trials. Granted values
are used as they are. If the timestep is granted, the second phase has the whole budget.

A client's update after one step of Adam is taken for a gradient. Several steps are simulated (`problem.unrolls_local_steps`).

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

from benchmark.base.ranges import MAX_NUMBER, InnerShare, Positive, Range
from benchmark.diffusion.loss import Forward, losses
from benchmark.diffusion.process import Mixture, Process
from benchmark.matching.adam import adam
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import layerwise_cosine_distance, squared_distance
from benchmark.matching.problem import Guess, Stack, clean_guess, mean_colour_start, start_variables
from benchmark.matching.search import Solution, Variables
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction

NOT_MIXABLE = "the timestep is private, and the network does not mix time embeddings"

EXCLUDED_LOGIT = -1e4
"""The logit of an excluded timestep; its weight is zero."""


@dataclass(frozen=True, kw_only=True)
class GIDMPlus(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, both phases together.
        joint_share: share of the budget for the first phase.
        lr: step of Adam for image and noise, in units of the image range [-1, 1] and of the noise's standard deviation.
        timestep_lr: step of Adam for the logits of the timestep.
    """

    adapts_to: ClassVar[frozenset[str]] = frozenset({"least_timestep"})

    evaluations: Annotated[int, Range(2, MAX_NUMBER)] = 1000
    joint_share: InnerShare = 0.4
    lr: Positive = 0.05
    timestep_lr: Positive = 0.3

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        tasks = [
            Task(observation, start_variables(observation, mean_colour_start(observation), generator), self.evaluations)
            for observation in observations
        ]
        attackable = [
            task for task in tasks if task.observation.timesteps is not None or task.observation.network.supports_mixtures
        ]
        private = [task for task in attackable if task.observation.timesteps is None]
        joint = dict(zip(private, self._joint(private), strict=True))
        found = match([_second_phase(task, joint.get(task)) for task in attackable], clean_guess, squared_distance, lbfgs)
        reconstructions = {
            task: _reconstruction(solution, joint.get(task)) for task, solution in zip(attackable, found, strict=True)
        }
        return [reconstructions.get(task) or Reconstruction(task.start["x_0"], 0, diverged=NOT_MIXABLE) for task in tasks]

    def _joint(self, tasks: Sequence[Task]) -> list[Solution]:
        """Run the first phase over image, noise and the logits (N, T) of the timestep."""
        evaluations = min(max(1, round(self.joint_share * self.evaluations)), self.evaluations - 1)
        tasks = [dataclasses.replace(task, start=_with_logits(task), evaluations=evaluations) for task in tasks]
        rates = {"x_0": self.lr, "eps": self.lr, "logits": self.timestep_lr}
        return match(tasks, _relaxed, layerwise_cosine_distance, partial(adam, lr=rates))


def _with_logits(task: Task) -> Variables:
    return {**task.start, "logits": equal_logits(task.observation)}


def equal_logits(observation: Observation) -> Tensor:
    """Return logits (N, T) that weigh all timesteps equally, except those that no client trains on."""
    logits = torch.zeros(observation.image_count, observation.schedule.steps, device=observation.network.device)
    logits[:, : observation.public.least_timestep or 0] = EXCLUDED_LOGIT
    return logits


def _second_phase(task: Task, joint: Solution | None) -> Task:
    """Return the task of the second phase: continue from the first phase with the timestep fixed to its most likely value."""
    if joint is None:
        return task
    start = {name: joint.variables[name] for name in task.start}
    fixed = dataclasses.replace(task.observation, timesteps=joint.variables["logits"].argmax(dim=-1))
    return Task(fixed, start, task.evaluations - joint.evaluations)


def _reconstruction(found: Solution, joint: Solution | None) -> Reconstruction:
    """Return the reconstruction, with the most likely timestep if it was private. Equal logits name no timestep."""
    if joint is None:
        return found.reconstruction()
    logits = joint.variables["logits"]
    moved = bool((logits.amax(-1) > 0).any())
    return dataclasses.replace(found.after(joint).reconstruction(), timesteps=logits.argmax(dim=-1) if moved else None)


@dataclass(frozen=True, eq=False)
class RelaxedGuess(Guess):
    """A guess of images, relaxed timesteps and noise.

    Attributes:
        x_0: (P, N, C, H, W) images.
        weights: (P, N, T) weights of the timesteps, which sum to 1 over T.
        eps: (P, N, C, H, W) noise.
    """

    x_0: Tensor
    weights: Tensor
    eps: Tensor

    def losses(self, network: Forward, schedule: Process) -> Tensor:
        """See `Guess.losses`: return the client's own training losses."""
        x_0, weights, eps = (part.flatten(0, 1) for part in self.parts())
        return losses(network, schedule, x_0, Mixture(weights), eps).view(self.x_0.shape[:2])


def _relaxed(variables: Variables, known: Stack) -> Guess:
    noise = known.noise if known.noise is not None else variables["eps"]
    return RelaxedGuess(variables["x_0"], torch.softmax(variables["logits"], dim=-1), noise)
