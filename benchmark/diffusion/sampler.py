"""The deterministic sampler: from a latent to an image, through a trained network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.schedule import Schedule


def ddim_timesteps(steps: int, total: int) -> list[int]:
    """`steps` different timesteps from T - 1 down to 0, evenly spaced and rounded; all of them where there are no more.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"the sampler needs at least 1 step, not {steps}")
    spaced = torch.linspace(total - 1, 0, min(steps, total), dtype=torch.float64) if steps > 1 else torch.tensor([total - 1])
    return [int(t) for t in spaced.round()]


def ddim(network: Denoiser, schedule: Schedule, z: Tensor, steps: int) -> Tensor:
    """x_0 = Sampler(z): DDIM without noise (Song et al. 2020, arXiv 2010.02502, equation 12 with sigma = 0).

    As in diffusers' `DDIMScheduler`, each step's estimate of x_0 is clipped to the image range, which keeps the few steps of a
    small network from running away; the noise's estimate is not derived again from it.

    Differentiable in `z`. Each step is recomputed on the way back, so memory holds one step's activations at a time.

    Args:
        network: the prior.
        schedule: its noise schedule and prediction type.
        z: (B, C, H, W) the latent, standard normal.
        steps: number of sampler steps; see `ddim_timesteps`.

    Returns:
        (B, C, H, W) images in [-1, 1].
    """
    timesteps = ddim_timesteps(steps, schedule.steps)
    x = z
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        t = torch.full((len(z),), now, device=z.device)
        prediction = checkpoint(network, x, t, use_reentrant=False, preserve_rng_state=False) if x.requires_grad else network(x, t)
        x_0, eps = schedule.denoised(x, t, prediction)
        x_0 = x_0.clamp(-1, 1)
        x = x_0 if following is None else schedule.add_noise(x_0, torch.full_like(t, following), eps)
    return x
