"""Reads the forward process from a scheduler of diffusers, for the classes whose process is known."""

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
"""Scheduler classes of diffusers for networks trained under the process of DDPM; clients train with their alpha_bar."""

DDPM_TARGETS: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction")
"""Prediction types of networks under the process of DDPM."""

MAX_STEPS = 100_000
"""Largest number of timesteps of a process: more are a mistake."""

ALPHA_BAR_TOLERANCE = 1e-6
"""Largest accepted difference between the alpha_bar of a scheduler and of a `DDPMScheduler` with the same settings."""


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Stop diffusers from printing its warnings about the settings that `unknown_settings` returns."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def unknown_settings(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the settings of a diffusers configuration that its class does not have, except names that begin with `_`."""
    import diffusers

    cls = getattr(diffusers, str(config["_class_name"]), None)
    known = inspect.signature(cls.__init__).parameters if cls else config
    return tuple(sorted(name for name in config if not name.startswith("_") and name not in known))


def read_scheduler(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Return the scheduler that a client trains with.

    Args:
        config: configuration of a scheduler whose class is in `SCHEDULERS`.
        what: name of the model in error messages.

    Returns:
        A `DDPMScheduler` or a `FlowMatchEulerDiscreteScheduler`.

    Raises:
        UserError: the configuration cannot be used, or its settings change the process of its class.
    """
    return SCHEDULERS[str(config["_class_name"])](config, what)


def read_process(scheduler: SchedulerMixin) -> Process:
    """Return the process of a `DDPMScheduler` or a `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: the prediction type is unknown, or the share of signal is not finite, leaves [0, 1], rises somewhere, or is
            0 before the last timestep.
    """
    return PROCESSES[type(scheduler).__name__](scheduler)


def _build(cls: Any, config: Mapping[str, object], what: str) -> Any:
    try:
        with quiet_diffusers():
            return cls.from_config(dict(config))
    except Exception as error:
        raise UserError(f"{what} has a scheduler that cannot be used: {whole_message(error)}") from error


def _read_ddpm(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Return the `DDPMScheduler` with the same settings; refuse a scheduler whose alpha_bar differs from it."""
    import diffusers

    own = _build(getattr(diffusers, str(config["_class_name"])), config, what)
    scheduler: Any = _build(diffusers.DDPMScheduler, own.config, what)
    if scheduler.alphas_cumprod.shape != (own.config.num_train_timesteps,):
        raise UserError(
            f"{what} has a scheduler with {scheduler.alphas_cumprod.numel()} betas for "
            f"{shown(own.config.num_train_timesteps)} timesteps"
        )
    if not torch.allclose(own.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=ALPHA_BAR_TOLERANCE, equal_nan=True):
        raise UserError(f"{what} has a {shown(config['_class_name'])} whose noise schedule differs from DDPM's")
    return scheduler


def _read_flow(config: Mapping[str, object], what: str) -> SchedulerMixin:
    """Return the scheduler of flow matching.

    Refuse dynamic shifting, where the noise of a timestep depends on the image size, and inverted sigmas, where the network's
    input is 1 - sigma.
    """
    import diffusers

    for name in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(name):
            raise UserError(f"{what} has a scheduler with {name}; that is not supported")
    scheduler: SchedulerMixin = _build(diffusers.FlowMatchEulerDiscreteScheduler, config, what)
    return scheduler


SCHEDULERS: Mapping[str, Callable[[Mapping[str, object], str], SchedulerMixin]] = {
    **dict.fromkeys(DDPM_SAMPLERS, _read_ddpm),
    "FlowMatchEulerDiscreteScheduler": _read_flow,
}
"""For each scheduler class of diffusers, the function that reads its configuration."""


def _ddpm_process(scheduler: Any) -> Process:
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in DDPM_TARGETS:
        raise ValueError(f"prediction type {shown(prediction_type)} is not one of {', '.join(DDPM_TARGETS)}")
    alpha_bar = scheduler.alphas_cumprod.float().clone()
    _check_signal(alpha_bar, "alpha_bar")
    return ddpm(alpha_bar, prediction_type)


def _flow_process(scheduler: Any) -> Process:
    sigma = scheduler.sigmas.float().flip(0)
    _check_signal(1 - sigma, "1 - sigma")
    return flow_matching(sigma)


PROCESSES: Mapping[str, Callable[[Any], Process]] = {
    "DDPMScheduler": _ddpm_process,
    "FlowMatchEulerDiscreteScheduler": _flow_process,
}
"""For each class of scheduler that `read_scheduler` returns, the function that reads its process."""


def _check_signal(share: Tensor, name: str) -> None:
    """Refuse a share of signal (T,) that is not finite, leaves [0, 1], rises somewhere, or is 0 before its end."""
    if not torch.isfinite(share).all():
        raise ValueError(f"the noise schedule's {name} is not finite")
    if share.max() > 1 or share.min() < 0 or (share.diff() > 0).any():
        raise ValueError(f"the noise schedule's {name} does not fall from 1 towards 0")
    if (share[:-1] == 0).any():
        raise ValueError(f"the noise schedule's {name} is 0 before its end")
