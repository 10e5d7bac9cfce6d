"""Conversions between pictures and tensors. Every image in GIDBench is (C, H, W) float32 in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def from_pil(image: Image.Image) -> Tensor:
    """Return an RGB picture as a (3, H, W) float32 tensor in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def centred_square(image: Image.Image, size: int) -> Tensor:
    """Return the largest centred square of an RGB picture as (3, size, size) float32 in [-1, 1].

    It is reduced by area averaging or enlarged by bicubic interpolation.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    filter_ = Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC
    return from_pil(square.resize((size, size), filter_))


def to_unit(images: Tensor) -> NDArray[np.float64]:
    """Clip images to [-1, 1] and map them to [0, 1].

    A (..., C, H, W) tensor becomes a (..., H, W, C) float64 array.
    """
    unit = (images.detach().cpu().double().clamp(-1, 1) + 1) / 2
    return np.asarray(unit.movedim(-3, -1).numpy())
