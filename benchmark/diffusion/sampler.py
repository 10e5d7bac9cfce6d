"""The deterministic sampler: from a latent to an image, through a trained network."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Process


def ddim_timesteps(steps: int, total: int) -> list[int]:
    """`steps` different timesteps from T - 1 down to 0, evenly spaced and rounded; all of them where there are no more.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, not {steps}")
    spaced = torch.linspace(total - 1, 0, min(steps, total), dtype=torch.float64) if steps > 1 else torch.tensor([total - 1])
    return [int(t) for t in spaced.round()]


def ddim(network: Denoiser, schedule: Process, z: Tensor, steps: int) -> Tensor:
    """x_0 = Sampler(z): DDIM without noise, after Song et al. 2020 (arXiv 2010.02502).

    As in diffusers' `DDIMScheduler`, each step's estimate of x_0 is clipped to the image range, which keeps the few steps of a
    small network from running away; the noise's estimate is not derived again from it. Under flow matching, steps that clip
    nothing are Euler's, as in diffusers' `FlowMatchEulerDiscreteScheduler`.

    Differentiable in `z`. Each step is recomputed on the way back, so memory holds one step's activations at a time.

    Args:
        network: the prior.
        schedule: its process.
        z: (B, C, H, W) the latent, standard normal.
        steps: number of sampler steps; see `ddim_timesteps`.

    Returns:
        (B, C, H, W) images in [-1, 1].
    """
    x = z
    timesteps = ddim_timesteps(steps, schedule.steps)
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        if x.requires_grad:
            x_0, eps = checkpoint(_implied, network, schedule, x, now, use_reentrant=False, preserve_rng_state=False)
        else:
            x_0, eps = _implied(network, schedule, x, now)
        x = x_0 if following is None else _noisy(schedule, x_0, eps, following)
    return x


@torch.no_grad()
def ddim_inverse(network: Denoiser, schedule: Process, x_0: Tensor, steps: int) -> Tensor:
    """A latent that `ddim` takes back to about the images `x_0` (B, C, H, W): its steps the other way round.

    Exact where a prediction does not change from one step to the next; a start for a search, not an encoding.
    """
    x = x_0
    for now, following in itertools.pairwise(ddim_timesteps(steps, schedule.steps)[::-1]):
        x = _noisy(schedule, *_implied(network, schedule, x, now), following)
    return x


def estimate(network: Denoiser, schedule: Process, images: Tensor, noise_std: float) -> Tensor:
    """The clean images, clipped to [-1, 1], that the network sees in images (B, C, H, W) with noise of that deviation.

    Nothing is added: what is wrong with the images is taken for the noise. The timestep is the one whose noise, in units of
    its signal, is nearest.
    """
    now = int((schedule.noise / schedule.signal - noise_std).abs().argmin())
    return _implied(network, schedule, _noisy(schedule, images, torch.zeros_like(images), now), now)[0]


def _implied(network: Denoiser, schedule: Process, x: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """The clipped image and the noise that the network sees in `x` at timestep `now`."""
    t = torch.full((len(x),), now, device=x.device)
    x_0, eps = schedule.denoised(x, t, network(x, t))
    return x_0.clamp(-1, 1), eps


def _noisy(schedule: Process, x_0: Tensor, eps: Tensor, at: int) -> Tensor:
    return schedule.add_noise(x_0, torch.full((len(x_0),), at, device=x_0.device), eps)
