"""GIDM+: image, noise and timestep searched together, where the client keeps noise and timestep to itself.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

The abstract names a joint triple optimisation. How it goes on is ours throughout, the relaxation and the schedule included:

1. All three together: Adam on the mean of the layers' cosine distances. The timestep is a softmax over all T of them, mixing
   their embeddings and their alpha_bar, from equal weights. Every layer counts alike, so that those of the time embedding
   have a say; with the plain distance the timestep was missed in trials on training images of CIFAR-10.
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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.matching.objectives import layerwise_cosine_distance, squared_distance
from benchmark.matching.problem import defect, flat, gaussian, guessed_update
from benchmark.matching.search import Variables, adam, lbfgs
from benchmark.plugins import Attack
from benchmark.types import Observation, Reconstruction, Update


@dataclass(frozen=True, kw_only=True)
class GIDMPlus(Attack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, both phases together.
        joint_share: share of the budget for the first phase.
        lr: step of Adam for image and noise, in units of the image range [-1, 1] and of the noise's deviation.
        timestep_lr: step of Adam for the logits of the timestep.
    """

    evaluations: int = 1000
    joint_share: float = 0.4
    lr: float = 0.05
    timestep_lr: float = 0.3

    def __post_init__(self) -> None:
        if self.evaluations < 2:
            raise ValueError(f"evaluations must be at least 2, not {self.evaluations}")
        if not 0 < self.joint_share < 1:
            raise ValueError(f"joint_share must be between 0 and 1, not {self.joint_share:g}")
        if self.lr <= 0 or self.timestep_lr <= 0:
            raise ValueError(f"lr and timestep_lr must be above 0, not {self.lr:g} and {self.timestep_lr:g}")

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return [self._invert(observation, generator) for observation in observations]

    def _invert(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        start = {"x_0": flat(seen)}
        if seen.noise is None:
            start["eps"] = gaussian(seen, generator)
        if reason := defect(seen):
            return Reconstruction(start["x_0"], evaluations=0, diverged=reason)
        spent, t, told = 0, seen.timesteps, False
        if t is None:
            start, logits, spent = self._joint(seen, start)
            t, told = logits.argmax(dim=-1), bool(logits.any())  # equal logits name no timestep

        def cost(variables: Variables) -> Tensor:
            return squared_distance(_update(seen, variables, t), seen.update)

        found = lbfgs(cost, start, self.evaluations - spent)
        return Reconstruction(
            found.variables["x_0"],
            spent + found.evaluations,
            found.loss,
            timesteps=t if told else None,
            noise=found.variables.get("eps"),
            diverged=found.diverged,
        )

    def _joint(self, seen: Observation, start: Variables) -> tuple[dict[str, Tensor], Tensor, int]:
        """The first phase: where image, noise and the logits (B, T) have come to, and the evaluations spent."""
        logits = torch.zeros(seen.batch_size, seen.schedule.steps, device=seen.network.device)

        def cost(variables: Variables) -> Tensor:
            relaxed = torch.softmax(variables["logits"], dim=-1)
            return layerwise_cosine_distance(_update(seen, variables, relaxed), seen.update)

        rates = {"x_0": self.lr, "eps": self.lr, "logits": self.timestep_lr}
        evaluations = min(max(1, round(self.joint_share * self.evaluations)), self.evaluations - 1)
        found = adam(cost, {**start, "logits": logits}, evaluations, rates)
        variables = {name: found.variables[name] for name in start}
        return variables, found.variables["logits"], found.evaluations


def _update(seen: Observation, variables: Variables, t: Tensor) -> Update:
    eps = seen.noise if seen.noise is not None else variables["eps"]
    return guessed_update(seen, variables["x_0"], t, eps)
