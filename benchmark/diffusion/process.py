"""Which of diffusers' schedulers have the forward process of DDPM, and how its noise schedule is read from them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from benchmark.base.errors import UserError, shown, whole_message

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

PROCESSES = frozenset(
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

    known = inspect.signature(getattr(diffusers, str(config["_class_name"])).__init__).parameters
    return tuple(sorted(name for name in config if not name.startswith("_") and name not in known))


def read_scheduler(config: Mapping[str, object], what: str) -> DDPMScheduler:
    """Return the scheduler that a client trains with, from the configuration of a scheduler of `PROCESSES`.

    Raises:
        UserError: the configuration cannot be used, or DDPM with the same settings has another alpha_bar.
    """
    import diffusers

    cls: Any = getattr(diffusers, str(config["_class_name"]))
    try:
        with quiet_diffusers():
            own = cls.from_config(dict(config))
            scheduler: DDPMScheduler = diffusers.DDPMScheduler.from_config(dict(own.config))
    except Exception as error:
        raise UserError(f"{what} has a scheduler that cannot be used: {whole_message(error)}") from error
    if scheduler.alphas_cumprod.shape != (own.config.num_train_timesteps,):
        raise UserError(
            f"{what} has a scheduler with {scheduler.alphas_cumprod.numel()} betas for "
            f"{shown(own.config.num_train_timesteps)} timesteps"
        )
    if not torch.allclose(own.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=TOLERANCE, equal_nan=True):
        raise UserError(f"{what} has a {shown(config['_class_name'])} whose noise schedule is not that of DDPM")
    return scheduler
