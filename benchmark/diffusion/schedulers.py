"""diffusers' schedulers whose forward process is known, and how it is read from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmark.base.errors import UserError, shown, whole_message
from benchmark.diffusion.process import PredictionType, Process, ddpm, flow_matching

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

DDPM_SAMPLERS = frozenset(
    {
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDIMScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
"""Classes of diffusers that sample from a network trained by DDPM's process; their alpha_bar is what a client trains with."""

DDPM_TARGETS: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction")
"""What networks predict under the process of DDPM."""

MOST_STEPS = 100_000
"""Timesteps of a process: more are a mistake."""

TOLERANCE = 1e-6
"""How far the alpha_bar of a scheduler of another class may lie from DDPM's with the same settings."""


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep diffusers from printing what `unknown_settings` returns."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def unknown_settings(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the settings of a diffusers configuration that its class does not have; names of diffusers' own are left out."""
    import diffusers

    cls = getattr(diffusers, str(config["_class_name"]), None)
    known = inspect.signature(cls.__init__).parameters if cls else config
    return tuple(sorted(name for name in config if not name.startswith("_") and name not in known))


def read_scheduler(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Return the scheduler that a client trains with, from the configuration of a scheduler of `SCHEDULERS`.

    Raises:
        UserError: the configuration cannot be used, or has another process than its class.
    """
    return SCHEDULERS[str(config["_class_name"])](config, what)


def read_process(scheduler: SchedulerMixin) -> Process:
    """Return the process of a `DDPMScheduler` or a `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: its prediction type is not known, or its share of signal does not fall from above 0; 0 itself may stand
            at its end alone.
    """
    return PROCESSES[type(scheduler).__name__](scheduler)


def _made(cls: Any, config: Mapping[str, object], what: str) -> Any:
    try:
        with quiet_diffusers():
            return cls.from_config(dict(config))
    except Exception as error:
        raise UserError(f"{what} has a scheduler that cannot be used: {whole_message(error)}") from error


def _read_ddpm(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Refuse a scheduler whose alpha_bar is not that of DDPM with the same settings."""
    import diffusers

    own = _made(getattr(diffusers, str(config["_class_name"])), config, what)
    scheduler: Any = _made(diffusers.DDPMScheduler, own.config, what)
    if scheduler.alphas_cumprod.shape != (own.config.num_train_timesteps,):
        raise UserError(
            f"{what} has a scheduler with {scheduler.alphas_cumprod.numel()} betas for "
            f"{shown(own.config.num_train_timesteps)} timesteps"
        )
    if not torch.allclose(own.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=TOLERANCE, equal_nan=True):
        raise UserError(f"{what} has a {shown(config['_class_name'])} whose noise schedule is not that of DDPM")
    return scheduler


def _read_flow(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Refuse settings that make the noise of a timestep depend on the image size, or that feed the network 1 - sigma."""
    import diffusers

    for name in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(name):
            raise UserError(f"{what} has a scheduler with {name}; that is not supported")
    scheduler: SchedulerMixin = _made(diffusers.FlowMatchEulerDiscreteScheduler, config, what)
    return scheduler


SCHEDULERS: Mapping[str, Callable[[Mapping[str, object], str], SchedulerMixin]] = {
    **dict.fromkeys(DDPM_SAMPLERS, _read_ddpm),
    "FlowMatchEulerDiscreteScheduler": _read_flow,
}
"""How each class of diffusers' schedulers is read."""


def _ddpm(scheduler: Any) -> Process:
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in DDPM_TARGETS:
        raise ValueError(f"prediction type {shown(prediction_type)} is not one of {', '.join(DDPM_TARGETS)}")
    alpha_bar = scheduler.alphas_cumprod.float().clone()
    _check_signal(alpha_bar, "alpha_bar")
    return ddpm(alpha_bar, prediction_type)


def _flow(scheduler: Any) -> Process:
    sigma = scheduler.sigmas.float().flip(0)
    _check_signal(1 - sigma, "1 - sigma")
    return flow_matching(sigma)


PROCESSES: Mapping[str, Callable[[Any], Process]] = {"DDPMScheduler": _ddpm, "FlowMatchEulerDiscreteScheduler": _flow}
"""How the process is read from each scheduler that `read_scheduler` returns."""


def _check_signal(share: Tensor, name: str) -> None:
    """Refuse a share of signal (T,) that does not fall from above 0 towards it."""
    if not torch.isfinite(share).all():
        raise ValueError(f"the noise schedule's {name} is not finite")
    if share.max() > 1 or share.min() < 0 or (share.diff() > 0).any():
        raise ValueError(f"the noise schedule's {name} does not fall from 1 towards 0")
    if (share[:-1] == 0).any():
        raise ValueError(f"the noise schedule's {name} is 0 before its end")
