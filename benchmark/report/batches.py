"""Draw all images of one update, enlarged: the private images above what an attack rebuilt."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmark.report.pictures import picture, set_title

MIN_IMAGES = 4
"""Minimum number of images behind an update for which it has a figure of its own."""

MAX_IMAGES = 32
"""Maximum number of images of one figure."""

ACROSS = 8
"""Images side by side."""


def first_update(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first update of one attack, by timestep; empty if it was lost or has too few images."""
    first = samples.sort_values(["trial", "victim"]).iloc[0]
    rows = samples[(samples.trial == first.trial) & (samples.victim == first.victim) & (samples.status == "ok")]
    return rows.sort_values("timestep").head(MAX_IMAGES) if len(rows) >= MIN_IMAGES else rows.head(0)


def whole_batch(update: pd.DataFrame, title: str) -> Figure:
    """Draw the private images of an update, each above its reconstruction, with its timestep and PSNR.

    Args:
        update: a row per image.
        title: title of the figure.
    """
    columns = min(ACROSS, len(update))
    bands = -(-len(update) // columns)
    size = (0.4 + 0.95 * columns, 0.9 + 2.2 * bands)
    figure, grid = plt.subplots(2 * bands, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for place, row in enumerate(update.itertuples()):
        band, x = divmod(place, columns)
        picture(grid[2 * band, x], row.original, f"t = {row.timestep}")
        picture(grid[2 * band + 1, x], row.reconstruction, f"{row.psnr:.1f} dB")
    set_title(figure, f"{title}\nupper rows: private images; lower rows: reconstructions")
    return figure
