"""Draw one image into a figure, and the title above it."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

INCHES_PER_LETTER = 0.07
"""Width of one letter of a figure's title."""


def picture(axes: Any, image: np.ndarray[Any, np.dtype[np.float32]], title: str) -> None:
    """Draw an image (H, W, C) in [-1, 1], clipped, under a small title."""
    axes.imshow(np.clip((image + 1) / 2, 0, 1), interpolation="nearest")
    axes.set_title(title, pad=2, fontsize=7)


def set_title(figure: Figure, title: str) -> None:
    """Set the title of a figure at its left, with lines no longer than the figure is wide."""
    letters = int(figure.get_figwidth() / INCHES_PER_LETTER)
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, letters)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
