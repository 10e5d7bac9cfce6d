"""Settings of a client's training for models without a scheduler: noise schedule, prediction type, number of timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from benchmark.base.ranges import Range, check_fields
from benchmark.diffusion.process import PredictionType
from benchmark.diffusion.schedulers import DDPM_TARGETS, MAX_STEPS

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

MAX_BETA = 0.999


@dataclass(frozen=True)
class Convention:
    """The process and target of a client's training, as in `tiny[prediction=v_prediction,schedule=sigmoid,steps=16]`.

    Attributes:
        prediction: the target of the network. `flow_prediction` means flow matching, whose noise is linear in the timestep.
        schedule: `linear` is diffusers' linear schedule, with betas scaled by 1000 / T. `cosine` is squaredcos_cap_v2 of
            diffusers. `sigmoid` follows Jabri et al. 2022 (arXiv 2212.11972), from -3 to 3 at temperature 1; for T = 16, its
            alpha_bar at t = 1 equals the value in the GIDM reference code.
        steps: number of timesteps T.
    """

    prediction: PredictionType = "epsilon"
    schedule: Literal["linear", "cosine", "sigmoid"] = "linear"
    steps: Annotated[int, Range(2, MAX_STEPS)] = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prediction not in DDPM_TARGETS and self.schedule != "linear":
            raise ValueError(f"{self.prediction} has no schedule {self.schedule}")

    def scheduler(self) -> SchedulerMixin:
        """Return the diffusers scheduler with these settings, which can be saved beside a network."""
        return SCHEDULERS[self.prediction](self)


def _linear(steps: int) -> Mapping[str, object]:
    if steps == 1000:
        return {"beta_schedule": "linear"}
    betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    return {"trained_betas": betas.clamp(max=MAX_BETA).tolist()}


def _cosine(steps: int) -> Mapping[str, object]:
    return {"beta_schedule": "squaredcos_cap_v2"}


def _sigmoid(steps: int) -> Mapping[str, object]:
    gamma = torch.sigmoid(torch.linspace(3, -3, steps + 1, dtype=torch.float64))
    alpha_bar = (gamma - gamma[-1]) / (gamma[0] - gamma[-1])
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return {"trained_betas": betas.clamp(max=MAX_BETA).tolist()}


BETA_SETTINGS: Mapping[str, Callable[[int], Mapping[str, object]]] = {"linear": _linear, "cosine": _cosine, "sigmoid": _sigmoid}
"""For each schedule, a function from the number of timesteps to the arguments of diffusers' scheduler."""


def _ddpm_scheduler(convention: Convention) -> SchedulerMixin:
    from diffusers import DDPMScheduler

    betas = BETA_SETTINGS[convention.schedule](convention.steps)
    return DDPMScheduler(num_train_timesteps=convention.steps, prediction_type=convention.prediction, **betas)


def _flow_scheduler(convention: Convention) -> SchedulerMixin:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=convention.steps)


SCHEDULERS: Mapping[PredictionType, Callable[[Convention], SchedulerMixin]] = {
    **dict.fromkeys(DDPM_TARGETS, _ddpm_scheduler),
    "flow_prediction": _flow_scheduler,
}
"""For each prediction type, a function from the convention to its scheduler."""
