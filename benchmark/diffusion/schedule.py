"""The forward process and its training target, with the symbols of Ho et al. 2020 (arXiv 2006.11239).

A timestep is a whole number in [0, T), or is relaxed to T weights that sum to 1, of which a whole number is a corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from benchmark.base.errors import shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule and what the network predicts under it.

    Attributes:
        alpha_bar: (T,) float32, decreasing in (0, 1]: the share of signal left at each timestep; the last may be 0.
        prediction_type: `epsilon` (the noise) or `v_prediction` (Salimans and Ho 2022, arXiv 2202.00512).
    """

    alpha_bar: Tensor
    prediction_type: PredictionType

    @property
    def steps(self) -> int:
        """T, the number of timesteps."""
        return self.alpha_bar.numel()

    def to(self, device: str) -> Schedule:
        """The same schedule on another device."""
        return Schedule(self.alpha_bar.to(device), self.prediction_type)

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

        Args:
            x_0: (B, C, H, W) images in [-1, 1].
            t: (B,) int64 in [0, T), or (B, T) weights.
            eps: (B, C, H, W) standard normal noise.
        """
        alpha_bar = self._at(t)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps

    def clean(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0 of a noisy image whose noise is known: the inverse of `add_noise`."""
        alpha_bar = self._at(t)
        return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    def target(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network is trained to output: eps, or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0."""
        if self.prediction_type == "epsilon":
            return eps
        alpha_bar = self._at(t)
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0

    def denoised(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The (x_0, eps) that x_t and the network's prediction imply: the inverse of `add_noise` and `target`."""
        if self.prediction_type == "epsilon":
            return self.clean(x_t, t, prediction), prediction
        alpha_bar = self._at(t)
        x_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
        return x_0, alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * x_t

    def _at(self, t: Tensor) -> Tensor:
        alpha_bar = t @ self.alpha_bar if t.is_floating_point() else self.alpha_bar[t]
        return alpha_bar.view(-1, 1, 1, 1)


def from_scheduler(scheduler: DDPMScheduler) -> Schedule:
    """Read a diffusers scheduler.

    Raises:
        ValueError: its prediction type is neither `epsilon` nor `v_prediction`, or its alpha_bar is no share of signal that
            falls from above 0; 0 itself may stand at its end alone.
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in get_args(PredictionType):
        raise ValueError(f"prediction type {shown(prediction_type)} is not one of {', '.join(get_args(PredictionType))}")
    alpha_bar = scheduler.alphas_cumprod.float().clone()
    if not torch.isfinite(alpha_bar).all():
        raise ValueError("the noise schedule's alpha_bar is not finite")
    if alpha_bar.max() > 1 or alpha_bar.min() < 0 or (alpha_bar.diff() > 0).any():
        raise ValueError("the noise schedule's alpha_bar does not fall from 1 towards 0")
    if (alpha_bar[:-1] == 0).any():
        raise ValueError("the noise schedule's alpha_bar is 0 before its end")
    return Schedule(alpha_bar, prediction_type)


def uniform_timesteps(count: int, least: int, steps: int, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) in [least, steps). A share is drawn, so that victims keep their place whatever the range."""
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    return least + (share * (steps - least)).long()
