"""The forward process x_t = alpha_t x_0 + sigma_t eps, and the target p_t x_0 + q_t eps of the network.

A timestep is a whole number in [0, T). A relaxed timestep is a vector of T weights that sum to 1 (`Mixture`). The whole number
t corresponds to weight 1 at t and weight 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
"""Names in diffusers for the target of a network: the noise, the image, the velocity, or the velocity of flow matching."""

Coefficient = Tensor | float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Relaxed timesteps.

    Attributes:
        weights: (B, T); each row sums to 1.
    """

    weights: Tensor

    def average(self, table: Tensor) -> Tensor:
        """Return the weighted mean (B, *shape) of the rows of a table (T, *shape)."""
        return self.weights @ table


@dataclass(frozen=True)
class Path:
    """The scales of signal and noise, as functions of a level. Each timestep has one level; relaxed timesteps average levels.

    Attributes:
        signal: returns alpha for a level.
        noise: returns sigma for a level.
    """

    signal: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]


VARIANCE_PRESERVING = Path(torch.sqrt, lambda alpha_bar: (1 - alpha_bar).sqrt())
"""The path of Ho et al. 2020 (arXiv 2006.11239, eq. 4): alpha^2 + sigma^2 = 1. The level is alpha_bar = alpha^2."""

STRAIGHT = Path(lambda sigma: 1 - sigma, lambda sigma: sigma)
"""The path of flow matching, as in diffusers' `FlowMatchEulerDiscreteScheduler.scale_noise`. The level is sigma = 1 - alpha."""

TARGETS: Mapping[PredictionType, Callable[[Tensor, Tensor], tuple[Coefficient, Coefficient, Coefficient]]] = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0, alpha),
    "sample": lambda alpha, sigma: (1.0, 0.0, -sigma),
    "v_prediction": lambda alpha, sigma: (-sigma, alpha, 1.0),
    "flow_prediction": lambda alpha, sigma: (-1.0, 1.0, 1.0),
}
"""For each prediction type, a function from (alpha, sigma) to p, q and the determinant alpha q - sigma p.

`v_prediction` is the velocity of Salimans and Ho 2022 (arXiv 2202.00512, appendix D), on the variance-preserving path.
`flow_prediction` is eps - x_0, on the straight path.
"""


@dataclass(frozen=True, eq=False)
class Process:
    """A forward process with the target of its network.

    Attributes:
        level: (T,) float32, one level per timestep: alpha_bar or sigma, depending on the path.
        path: gives the scales of signal and noise for a level.
        prediction_type: a name in `TARGETS`.
        times: (T,) input of the network for each timestep.
        min_snr: gamma of the loss weights of Hang et al. 2023 (arXiv 2303.09556), see `loss_weight`; None for equal weights.
    """

    level: Tensor
    path: Path
    prediction_type: PredictionType
    times: Tensor
    min_snr: float | None = None

    @property
    def steps(self) -> int:
        """Return T, the number of timesteps."""
        return self.level.numel()

    @property
    def signal(self) -> Tensor:
        """Return alpha (T,), the scale of the image at each timestep."""
        return self.path.signal(self.level)

    @property
    def noise(self) -> Tensor:
        """Return sigma (T,), the scale of the noise at each timestep."""
        return self.path.noise(self.level)

    def to(self, device: str) -> Process:
        """Return the same process on another device."""
        return replace(self, level=self.level.to(device), times=self.times.to(device))

    def add_noise(self, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
        """Return x_t = alpha_t x_0 + sigma_t eps.

        Args:
            x_0: (B, C, H, W) images in [-1, 1].
            t: (B,) int64 in [0, T), or B mixtures.
            eps: (B, C, H, W) standard normal noise.
        """
        alpha, sigma = self._scales(t)
        return alpha * x_0 + sigma * eps

    def target(self, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
        """Return p_t x_0 + q_t eps (B, C, H, W), the training target of the network; see `add_noise` for the arguments."""
        p, q, _ = TARGETS[self.prediction_type](*self._scales(t))
        return _weighted_sum((q, eps), (p, x_0))

    def weighted(self, losses: Tensor, t: Tensor | Mixture) -> Tensor:
        """Return the losses (B,) times their weights at timesteps `t`; see `loss_weight`."""
        return losses if self.min_snr is None else self.loss_weight(t) * losses

    def loss_weight(self, t: Tensor | Mixture) -> Tensor:
        """Return the weights (B,) of the losses at B timesteps; 1 without `min_snr`.

        The weight min(SNR, gamma), with SNR = alpha^2 / sigma^2, belongs to the loss of the image. The image that a prediction
        implies has (sigma / determinant)^2 times the error of the prediction. So for noise the weight is min(SNR, gamma) / SNR,
        for velocity min(SNR, gamma) / (SNR + 1).
        """
        alpha, sigma = (scale.flatten() for scale in self._scales(t))
        if self.min_snr is None:
            return torch.ones_like(alpha)
        _, _, determinant = TARGETS[self.prediction_type](alpha, sigma)
        return torch.minimum((alpha / determinant).square(), self.min_snr * (sigma / determinant).square())

    def denoised(self, x_t: Tensor, t: Tensor | Mixture, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_0, eps), computed from x_t and the network's prediction: the inverse of `add_noise` and `target`.

        If the network predicts x_0 or eps itself, that prediction is returned unchanged.
        """
        alpha, sigma = self._scales(t)
        p, q, determinant = TARGETS[self.prediction_type](alpha, sigma)
        x_0 = prediction if _is_number(q, 0) else _weighted_sum((q, x_t), (-sigma, prediction)) / determinant
        eps = prediction if _is_number(p, 0) else _weighted_sum((alpha, prediction), (-p, x_t)) / determinant
        return x_0, eps

    def _scales(self, t: Tensor | Mixture) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at timesteps `t`, each (B, 1, 1, 1)."""
        level = (t.average(self.level) if isinstance(t, Mixture) else self.level[t]).view(-1, 1, 1, 1)
        return self.path.signal(level), self.path.noise(level)


def ddpm(alpha_bar: Tensor, prediction_type: PredictionType) -> Process:
    """Return the process of DDPM with `alpha_bar` (T,); the inputs of its network are the timesteps themselves."""
    return Process(alpha_bar, VARIANCE_PRESERVING, prediction_type, torch.arange(alpha_bar.numel()))


def flow_matching(sigma: Tensor) -> Process:
    """Return the process of flow matching with the noise scales `sigma` (T,); the inputs of its network are T sigma.

    In diffusers, the inputs are the scheduler's `timesteps`, which are sigma times the number of training timesteps
    (schedulers/scheduling_flow_match_euler_discrete.py, `__init__` and `set_timesteps`). The loop over them is in
    pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py.
    """
    return Process(sigma, STRAIGHT, "flow_prediction", sigma * sigma.numel())


def draw_timesteps(count: int, least: int, steps: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps (count,) in [least, steps) as shares of the range; a seed gives the same shares for every range."""
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    return least + (share * (steps - least)).long()


def _is_number(coefficient: Coefficient, number: float) -> bool:
    return not isinstance(coefficient, Tensor) and coefficient == number


def _weighted_sum(*terms: tuple[Coefficient, Tensor]) -> Tensor:
    """Return the sum of c x over the terms (c, x). If c is the number 0, x is ignored, even if it is not finite."""
    return reduce(torch.add, [x if _is_number(c, 1) else c * x for c, x in terms if not _is_number(c, 0)])
