"""A deterministic sampler: it turns a latent into an image with a trained network."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Process


def ddim_timesteps(steps: int, total: int) -> list[int]:
    """Return `steps` timesteps from T - 1 down to 0, evenly spaced and rounded, with T = `total`.

    All T timesteps are returned if `steps` is larger. For 1 step, the timestep is T - 1.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, not {steps}")
    spaced = torch.linspace(total - 1, 0, min(steps, total), dtype=torch.float64) if steps > 1 else torch.tensor([total - 1])
    return [int(t) for t in spaced.round()]


def ddim(network: Denoiser, schedule: Process, z: Tensor, steps: int) -> Tensor:
    """Return the image for a latent by DDIM without noise, after Song et al. 2020 (arXiv 2010.02502).

    As in diffusers' `DDIMScheduler`, each step clips the estimate of x_0 to the image range. Without this, a small network with
    few steps can diverge. The estimate of the noise is not computed again from the clipped image. Under flow matching, steps
    that clip nothing are Euler steps, as in diffusers' `FlowMatchEulerDiscreteScheduler`.

    The result is differentiable in `z`. The backward pass recomputes each step, so memory holds the activations of one step at
    a time.

    Args:
        network: the prior.
        schedule: the process of the prior.
        z: (B, C, H, W) the latent, standard normal.
        steps: number of sampler steps; see `ddim_timesteps`.

    Returns:
        (B, C, H, W) images in [-1, 1].
    """
    x = z
    timesteps = ddim_timesteps(steps, schedule.steps)
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        if x.requires_grad:
            x_0, eps = checkpoint(_estimates, network, schedule, x, now, use_reentrant=False, preserve_rng_state=False)
        else:
            x_0, eps = _estimates(network, schedule, x, now)
        x = x_0 if following is None else _add_noise(schedule, x_0, eps, following)
    return x


@torch.no_grad()
def ddim_inversion(network: Denoiser, schedule: Process, x_0: Tensor, steps: int) -> Tensor:
    """Return a latent from which `ddim` gives approximately the images `x_0` (B, C, H, W), by the steps of `ddim` reversed.

    The latent is exact only where the prediction does not change from one step to the next. It serves as the start of a search.
    """
    x = x_0
    for now, following in itertools.pairwise(ddim_timesteps(steps, schedule.steps)[::-1]):
        x = _add_noise(schedule, *_estimates(network, schedule, x, now), following)
    return x


def denoise(network: Denoiser, schedule: Process, images: Tensor, noise_std: float) -> Tensor:
    """Denoise images (B, C, H, W) with errors of standard deviation `noise_std`, and return them clipped to [-1, 1].

    No noise is added: the errors of the images take the place of the noise. The timestep is the one whose ratio of noise to
    signal is nearest to `noise_std`.
    """
    now = int((schedule.noise / schedule.signal - noise_std).abs().argmin())
    return _estimates(network, schedule, _add_noise(schedule, images, torch.zeros_like(images), now), now)[0]


def _estimates(network: Denoiser, schedule: Process, x: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """Return the network's estimates of the clean image, clipped, and of the noise in `x` at timestep `now`."""
    t = torch.full((len(x),), now, device=x.device)
    x_0, eps = schedule.denoised(x, t, network(x, t))
    return x_0.clamp(-1, 1), eps


def _add_noise(schedule: Process, x_0: Tensor, eps: Tensor, at: int) -> Tensor:
    return schedule.add_noise(x_0, torch.full((len(x_0),), at, device=x_0.device), eps)
