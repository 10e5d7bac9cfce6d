"""Draw PSNR as a curve: over the timestep of each image, or over the number of images behind an update."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmark.experiment.grid import ORACLE
from benchmark.report.pictures import set_title


def psnr_by_timestep(samples: pd.DataFrame, title: str) -> Figure:
    """Draw the PSNR of each image of a scene over its timestep: one panel per defense, one colour per attack, grey controls."""
    rows = samples[(samples.attack != ORACLE) & samples.psnr.notna()]
    defenses = sorted(dict.fromkeys(rows.defense), key=lambda name: (name != "none", name))
    attacks = list(dict.fromkeys(rows.attack))
    figure, grid = _panels(defenses)
    for axes, defense in zip(grid, defenses, strict=True):
        for attack in attacks:
            points = rows[(rows.defense == defense) & (rows.attack == attack)]
            style: Any = {"color": "0.7", "marker": "x"} if points.control.any() else {"marker": "o"}
            axes.plot(points.timestep, points.psnr, linestyle="", markersize=4, label=attack, **style)
    return _with_labels(figure, grid, "timestep t", "PSNR (dB) of each image", title)


def psnr_by_images(table: pd.DataFrame, title: str) -> Figure:
    """Draw the median PSNR with its 95% interval over the number of images behind an update.

    Each attack that ran with several images has a panel. The dashed line is the better floor. A line joins points that differ
    only in the batch size, only in the local steps, or only in the clients.
    """
    attacks = [name for name in dict.fromkeys(table.attack[~table.control.astype(bool) & (table.images > 1)]) if name != ORACLE]
    figure, grid = _panels(attacks)
    floors = table[table.control.astype(bool) & (table.attack != ORACLE)].groupby("images").psnr_median.max()
    for axes, attack in zip(grid, attacks, strict=True):
        rows = table[(table.attack == attack) & table.psnr_median.notna()]
        for defense in dict.fromkeys(rows.defense):
            defense_rows = rows[rows.defense == defense]
            several_clients = defense_rows.scenario.str.contains(" K=")
            single_image = (defense_rows.images == 1) & ~several_clients  # leaves out one client of several
            for practice in dict.fromkeys(defense_rows.practice[defense_rows.images > 1]):
                line = defense_rows[(defense_rows.practice == practice) | single_image].sort_values("images")
                errors = [line.psnr_median - line.psnr_ci_low, line.psnr_ci_high - line.psnr_median]
                axes.errorbar(line.images, line.psnr_median, errors, marker="o", markersize=4, label=f"{defense}, {practice}")
        axes.plot(floors.index, floors, color="0.6", linestyle="--", linewidth=0.8, label="better floor")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(table.images)), sorted(set(table.images)))
    return _with_labels(figure, grid, "images behind an update", "median PSNR (dB) with 95% interval", title)


def with_image_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Add two columns to the table: `images`, the number of images behind an update, and `practice`, the axes that raise it."""
    words = {"batch_size": "batch", "local_steps": "local steps", "clients": "clients"}
    images = table.batch_size * table.local_steps * table.clients
    names = [" and ".join(word for column, word in words.items() if row[column] > 1) for _, row in table.iterrows()]
    details = [" ".join(re.findall(r"lr=\S+|order \w+", label)) for label in table.scenario]
    timestep = table.timestep.map(str)  # a list if each image has its own timestep
    return table.assign(
        images=images,
        timestep=timestep,
        practice=[f"{name} {detail}".strip() for name, detail in zip(names, details, strict=True)],
    )


def _panels(names: list[str]) -> tuple[Figure, list[Any]]:
    size = (3.0 + 3.0 * len(names), 3.0)
    figure, grid = plt.subplots(1, len(names), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, names, strict=True):
        axes.set_title(name, loc="left")
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(grid.flat)


def _with_labels(figure: Figure, panels: list[Any], x_label: str, y_label: str, title: str) -> Figure:
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].set_ylim(bottom=0)
    figure.legend(list(handles.values()), list(handles), loc="outside right center")
    figure.supxlabel(x_label, fontsize=8)
    figure.supylabel(y_label, fontsize=8)
    set_title(figure, title)
    return figure
