"""Grey 25x25 faces that are part of scikit-image, so nothing has to be downloaded.

Source: `skimage.data.lfw_subset`, from Labeled Faces in the Wild

The data set has the first 100 of the 200 images there; the others are not faces. The source does not say which person an image
shows, so each image counts as its own source.

The first 20 images are public, the other 80 are for victims. Grey is repeated over three channels. Images are scaled to S with
bicubic interpolation. Images (3, S, S) float32 in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.images import from_pil
from benchmark.plugins import Dataset, Picture

FACES = 100
PUBLIC = 20


@dataclass(frozen=True, kw_only=True)
class Faces(Dataset):
    """No hyper-parameters."""

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different faces."""
        if count > FACES - PUBLIC:
            raise UserError(f"data set 'faces' has {FACES - PUBLIC} faces for victims, not {count}")
        order = torch.randperm(FACES - PUBLIC, generator=generator)[:count]
        return [_face(PUBLIC + i, size) for i in order.tolist()]

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the first 20 faces."""
        return [_face(i, size) for i in range(PUBLIC)]


def _face(index: int, size: int) -> Picture:
    image = Image.fromarray(_faces()[index]).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return Picture(from_pil(image), f"face-{index:03d}")


@cache
def _faces() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from skimage import data

    grey: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = data.lfw_subset()[:FACES]
    return np.rint(255 * grey).astype(np.uint8)
