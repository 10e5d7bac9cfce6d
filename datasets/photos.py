"""Crops of the real colour photographs that are part of scikit-image, so nothing has to be downloaded.

Source: the photographs inside scikit-image (`skimage.data`)

Victims are crops of `VICTIMS`, and public images are crops of `PUBLIC`. No photograph is in both, and both views of the
motorcycle are in the same part.

A crop is a random square, scaled down by area averaging. Its side is between a quarter and the whole of the shorter side of the
photograph, and at least S. Crops of one photograph are not independent, so the photograph is recorded as their source.

Images (3, S, S) float32 in [-1, 1], S up to 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.image_files import read_image
from benchmark.base.images import from_pil
from benchmark.base.paths import printable
from benchmark.base.seeds import stream
from benchmark.plugins import Dataset, Picture

VICTIMS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")
PUBLIC = ("hubble_deep_field.jpg", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg")
MAX_SIZE = 128
PUBLIC_CROPS = 64
TRAINING_CROPS = 8192
MIN_SIDE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Photos(Dataset):
    """No hyper-parameters."""

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: cycle through the photographs in a random order, with a fresh crop each time."""
        return _crops(VICTIMS, count, size, generator)

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: always the same 64 crops."""
        return _crops(PUBLIC, PUBLIC_CROPS, size, stream(0, "photos", "public"))

    def training(self, size: int) -> torch.Tensor:
        """See `Dataset.training`: always the same 8,192 crops of the public photographs."""
        crops = _crops(PUBLIC, TRAINING_CROPS, size, stream(0, "photos", "training"))
        return torch.stack([picture.image for picture in crops])


def _crops(names: Sequence[str], count: int, size: int, generator: torch.Generator) -> list[Picture]:
    if size > MAX_SIZE:
        raise UserError(f"data set 'photos' has images up to {MAX_SIZE}x{MAX_SIZE}, not {size}x{size}")
    order = torch.randperm(len(names), generator=generator).tolist()
    chosen = [names[order[i % len(names)]] for i in range(count)]
    return [Picture(_crop(_photograph(name), size, generator), Path(name).stem) for name in chosen]


def _crop(photograph: NDArray[np.uint8], size: int, generator: torch.Generator) -> torch.Tensor:
    height, width = photograph.shape[:2]
    max_side = min(height, width)
    min_side = max(size, int(MIN_SIDE_SHARE * max_side))
    shares = torch.rand(3, generator=generator, dtype=torch.float64)
    side = min_side + int(shares[0] * (max_side - min_side + 1))
    top = int(shares[1] * (height - side + 1))
    left = int(shares[2] * (width - side + 1))
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    return from_pil(square.resize((size, size), Image.Resampling.BOX))


@cache
def _photograph(name: str) -> NDArray[np.uint8]:
    import skimage

    file = Path(skimage.__file__).parent / "data" / name
    return np.asarray(read_image(file, printable(file)))
