"""Draw one image into a figure."""

from __future__ import annotations

from typing import Any

import numpy as np


def picture(axes: Any, image: np.ndarray[Any, np.dtype[np.float32]], title: str) -> None:
    """Draw an image (H, W, C) in [-1, 1], clipped, under a small title."""
    axes.imshow(np.clip((image + 1) / 2, 0, 1), interpolation="nearest")
    axes.set_title(title, pad=2, fontsize=7)
