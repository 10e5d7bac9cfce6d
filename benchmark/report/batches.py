"""Draw all images of one update, enlarged: the private images above what an attack rebuilt."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmark.report.pictures import picture

MIN_IMAGES = 4
"""Minimum number of images behind an update for which it has a figure of its own."""

MAX_IMAGES = 32
"""Maximum number of images of one figure."""

ACROSS = 8
"""Images side by side."""

INCHES_PER_LETTER = 0.07
"""Width of one letter of the title."""


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
    width = 0.4 + 0.95 * columns
    figure, grid = plt.subplots(2 * bands, columns, figsize=(width, 0.9 + 2.2 * bands), squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for place, row in enumerate(update.itertuples()):
        band, x = divmod(place, columns)
        picture(grid[2 * band, x], row.original, f"t = {row.timestep}")
        picture(grid[2 * band + 1, x], row.reconstruction, f"{row.psnr:.1f} dB")
    lines = [*title.splitlines(), "upper rows: private images; lower rows: reconstructions"]
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(width / INCHES_PER_LETTER))]
    figure.suptitle("\n".join(wrapped), x=0.01, ha="left")
    return figure
