"""Steps from the output of an attack to the stored images: check, decode, assign to the originals, and clip.

This code decides which images a cell stores, so it is part of the cell's identity. The metrics do not, so they are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmark.base.images import to_unit
from benchmark.types import Reconstruction, Victim


def validated(victim: Victim, returned: Reconstruction, decode: Callable[[Tensor], Tensor]) -> Reconstruction:
    """Check the output of an attack, which may be anything, and return it with decoded images on the CPU.

    Args:
        victim: the private images, which determine the expected shapes.
        returned: the output of the attack.
        decode: maps what an attack reconstructs to images.

    Raises:
        ValueError: the output is no `Reconstruction`, or a value has a wrong shape or type.
    """
    if not isinstance(returned, Reconstruction):
        raise ValueError(f"the attack returned a {type(returned).__name__}, not a Reconstruction")
    images = decode(returned.images.detach().cpu().float())
    if images.shape != victim.images.shape:
        raise ValueError(f"the attack returned images of shape {tuple(images.shape)}, not {tuple(victim.images.shape)}")
    evaluations = int(returned.evaluations)
    if evaluations < 0:
        raise ValueError(f"the attack reports {evaluations} evaluations")
    timesteps = returned.timesteps
    if timesteps is not None and timesteps.shape != victim.timesteps.shape:
        raise ValueError(f"the attack returned timesteps of shape {tuple(timesteps.shape)}")
    noise = returned.noise
    if noise is not None and noise.shape != victim.noise.shape:
        raise ValueError(f"the attack returned noise of shape {tuple(noise.shape)}, not {tuple(victim.noise.shape)}")
    predicted = returned.predicted_psnr
    if predicted is not None and predicted.shape != victim.timesteps.shape:
        raise ValueError(f"the attack returned predictions of shape {tuple(predicted.shape)}")
    return Reconstruction(
        images=images,
        evaluations=evaluations,
        loss=None if returned.loss is None else float(returned.loss),
        timesteps=None if timesteps is None else timesteps.detach().cpu().long(),
        noise=None if noise is None else noise.detach().cpu().float(),
        predicted_psnr=None if predicted is None else predicted.detach().cpu().float(),
        note=str(returned.note),
        diverged=None if returned.diverged is None else str(returned.diverged),
    )


def why_diverged(reconstruction: Reconstruction) -> str | None:
    """Return why the images are not valid, None if they are."""
    if reconstruction.diverged is None and not torch.isfinite(reconstruction.images).all():
        return "the images are not finite"
    return reconstruction.diverged


def clipped(image: Tensor) -> Tensor:
    """Return an image with its values clipped to [-1, 1]."""
    return image.clamp(-1, 1)


def assign(originals: Tensor, rebuilt: Tensor) -> NDArray[np.intp]:
    """Assign a reconstructed image to each original so that the total squared error is minimal.

    Args:
        originals: (B, C, H, W).
        rebuilt: (B, C, H, W) in any order.

    Returns:
        (B,) indices; `rebuilt[indices]` is in the order of `originals`.
    """
    a, b = to_unit(originals), to_unit(rebuilt)
    cost = np.stack([np.square(b - image).mean(axis=(1, 2, 3)) for image in a])
    columns: NDArray[np.intp] = linear_sum_assignment(cost)[1]
    return columns
