"""Paper-ready figures, each as PNG and PDF: a heat map, PSNR with intervals, a sheet of reconstructions, and `curves`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmark.grid import ORACLE
from benchmark.report.curves import psnr_by_images, psnr_by_timestep, with_images
from benchmark.report.leaderboard import PAIR, SCENE, Results

STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 9,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "savefig.bbox": "tight",
}
SHEET_IMAGES = 4
TIMESTEPS = 5
"""Different timesteps in a scene from which on PSNR is drawn over them."""
SIZES = 3
"""Different numbers of images behind an update from which on PSNR is drawn over them."""
INCHES_PER_LETTER = 0.06
"""Room for a label in the figures' font."""
BRIGHT = 33
"""dB from which the colour map is light enough for dark text."""


def write(results: Results, table: pd.DataFrame, directory: Path) -> list[Path]:
    """Draw every figure of every scene into `directory`, and return the PNG files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):
        for name, figure in _figures(results, table):
            for suffix in ("png", "pdf"):
                figure.savefig(directory / f"{name}.{suffix}", dpi=200)
            plt.close(figure)
            written.append(directory / f"{name}.png")
    return written


def _figures(results: Results, table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    for key, rows in table.groupby(SCENE, sort=False):
        label = " · ".join(map(str, key))
        ending = _ending(key)
        samples = results.samples
        if len(samples):
            samples = samples[np.logical_and.reduce([samples[c] == v for c, v in zip(SCENE, key, strict=True)])]
        yield f"heatmap-{ending}", heat_map(rows, f"{results.title}\n{label}")
        if len(samples) and (samples.attack != ORACLE).any():
            yield f"psnr-{ending}", psnr_by_attack(rows, f"{results.title}\n{label}")
            yield f"reconstructions-{ending}", sheet(samples, f"{results.title}\n{label}")
            if samples.timestep.nunique() >= TIMESTEPS:
                yield f"timesteps-{ending}", psnr_by_timestep(samples, f"{results.title}\n{label}")
    table = with_images(table)
    for key, rows in table.groupby(["dataset", "model", "image_size", "timestep"], sort=False):
        if rows.images.nunique() >= SIZES and not rows.control.all():
            label = "{} · {} · {}x{} · t={}".format(*key[:3], *key[2:])
            yield f"images-{_ending(key)}", psnr_by_images(rows, f"{results.title}\n{label}")


def _ending(key: tuple[str, ...]) -> str:
    """A scene as part of a file name: readable where that is unambiguous and short, with a hash where it is not."""
    text = "-".join(map(str, key)).replace("=", "")
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
    if plain == text.replace(" ", "-") and len(plain) <= 80:
        return plain
    return f"{plain[:60]}-{hashlib.blake2b(text.encode(errors='replace'), digest_size=4).hexdigest()}"


def heat_map(rows: pd.DataFrame, title: str) -> Figure:
    """Median PSNR over attacks x defenses; a cell without a value says why, an incomplete one how many images it has."""
    attacks, defenses = _order(rows), list(dict.fromkeys(rows.sort_values("defense").defense))
    defenses.sort(key=lambda name: (name != "none", name))
    figure, axes = plt.subplots(figsize=(1.3 + 1.0 * len(defenses), 1.2 + 0.42 * len(attacks)))
    values = np.full((len(attacks), len(defenses)), np.nan)
    for row in rows.itertuples():
        values[attacks.index(row.attack), defenses.index(row.defense)] = row.psnr_median
    colours = plt.get_cmap("viridis").with_extremes(bad="0.93")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=5, vmax=60, aspect="auto")
    for row in rows.itertuples():
        x, y = defenses.index(row.defense), attacks.index(row.attack)
        value = values[y, x]
        text = row.status if np.isnan(value) else f"{value:.1f}"
        if row.n_ok < row.n_total and row.status != "skipped":
            text += f"\n{row.n_ok}/{row.n_total}"
        dark = not np.isnan(value) and value < BRIGHT
        axes.text(x, y, text, ha="center", va="center", color="white" if dark else "0.2", fontsize=7)
    asked = set(zip(rows.attack, rows.defense, strict=True))
    for attack, defense in set(itertools.product(attacks, defenses)) - asked:
        axes.text(defenses.index(defense), attacks.index(attack), "not run", ha="center", va="center", color="0.5", fontsize=7)
    axes.set_xticks(range(len(defenses)), [_wrapped(name) for name in defenses])
    axes.set_yticks(range(len(attacks)), [_with_budget(rows, name) for name in attacks])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.02)
    bar.set_label("median PSNR (dB)")
    axes.set_xlabel("in brackets: budget in evaluations per victim", loc="left", color="0.4")
    bar.outline.set_visible(False)
    return figure


def psnr_by_attack(rows: pd.DataFrame, title: str) -> Figure:
    """Median PSNR with its 95% interval, a panel per defense; the better floor is a dashed line, the ceiling is left out."""
    rows = rows[rows.attack != ORACLE]
    attacks, defenses = _order(rows)[::-1], list(dict.fromkeys(rows.defense))
    defenses.sort(key=lambda name: (name != "none", name))
    columns = min(3, len(defenses))
    lines = -(-len(defenses) // columns)
    labels = [_with_budget(rows, name) for name in attacks]
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(
            0.2 + INCHES_PER_LETTER * max(map(len, labels)) + max(2.0 * columns, 4.0),
            0.7 + (0.45 + 0.22 * len(attacks)) * lines,
        ),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, defense in zip(grid.flat, defenses, strict=False):
        _psnr_panel(axes, rows[rows.defense == defense], attacks)
        axes.set_title(defense.replace("[", "\n[").replace(",", ",\n"), loc="left")
    for axes in grid.flat[len(defenses) :]:
        axes.set_visible(False)
    grid[0, 0].set_yticks(range(len(attacks)), labels)
    highest = rows[["psnr_median", "psnr_ci_high"]].max().max()
    grid[0, 0].set_xlim(0, 10 + (0 if np.isnan(highest) else highest))
    figure.supxlabel("median PSNR (dB) with 95% interval; dashed: better floor; in brackets: evaluations", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _psnr_panel(axes: Any, rows: pd.DataFrame, attacks: list[str]) -> None:
    floors = rows[rows.attack.isin(_controls(rows))].psnr_median
    beside = 2.0
    if floors.notna().any():
        beside += floors.max()
        axes.axvline(floors.max(), color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    for row in rows.itertuples():
        y = attacks.index(row.attack)
        if np.isnan(row.psnr_median):
            axes.text(beside, y, row.status, va="center", color="0.5", fontsize=7, style="italic")
            continue
        colour = "0.55" if row.control else "C0"
        if not np.isnan(row.psnr_ci_low):
            axes.plot([row.psnr_ci_low, row.psnr_ci_high], [y, y], color=colour, linewidth=1.4)
        axes.plot(row.psnr_median, y, "o", color=colour, markersize=4)
    axes.set_ylim(-0.6, len(attacks) - 0.4)
    axes.grid(axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def sheet(samples: pd.DataFrame, title: str) -> Figure:
    """A row per private image: the original, what each attack rebuilt under each defense with its PSNR, and the floors."""
    rows = samples[samples.attack != ORACLE]
    images = list(rows[PAIR].drop_duplicates().sort_values(PAIR).head(SHEET_IMAGES).itertuples(index=False, name=None))
    attacks, floors = rows[~rows.control], rows[rows.control]
    columns = list(attacks.sort_values("defense", key=_none_first).groupby(["defense", "attack"], sort=False).groups)
    columns += list(floors.drop_duplicates("attack").groupby(["defense", "attack"], sort=False).groups)
    figure, grid = plt.subplots(
        len(images),
        len(columns) + 1,
        figsize=(0.4 + 0.95 * (len(columns) + 1), 0.9 + 1.02 * len(images)),
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_axis_off()
    cells = {(row.defense, row.attack, row.trial, row.victim, row.image): row for row in rows.itertuples()}
    originals = {(row.trial, row.victim, row.image): row for row in rows.itertuples()}
    headings = ["original", *(_heading(defense, attack, set(floors.attack)) for defense, attack in columns)]
    for x, heading in enumerate(headings):
        grid[0, x].text(0.5, 1.25, heading, ha="center", va="bottom", fontsize=7, transform=grid[0, x].transAxes)
    for y, image in enumerate(images):
        found = [cells.get((*column, *image)) for column in columns]
        original = originals[image]
        _picture(grid[y, 0], original.original, original.source)
        for axes, cell in zip(grid[y, 1:], found, strict=True):
            if cell is not None and cell.status == "ok":
                _picture(axes, cell.reconstruction, f"{cell.psnr:.1f} dB")
            else:
                _note(axes, cell.status if cell else "no result")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _heading(defense: str, attack: str, floors: set[str]) -> str:
    return _wrapped(attack) if attack in floors else f"{_wrapped(attack)}\nvs {_wrapped(defense)}"


def _note(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.5", style="italic", transform=axes.transAxes)


def _none_first(names: pd.Series[str]) -> pd.Series[str]:
    return names.where(names != "none", "")


def _picture(axes: Any, picture: np.ndarray[Any, np.dtype[np.float32]], title: str) -> None:
    axes.imshow(np.clip((picture + 1) / 2, 0, 1), interpolation="nearest")
    axes.set_title(title, pad=2, fontsize=7)


def _order(rows: pd.DataFrame) -> list[str]:
    """Attacks by their best median, the oracle on top and the other controls last."""
    best = rows.groupby("attack").psnr_median.max()
    controls = _controls(rows)
    return sorted(best.index, key=lambda name: (name != ORACLE, name in controls, -np.nan_to_num(best[name], nan=-1)))


def _controls(rows: pd.DataFrame) -> set[str]:
    return set(rows.attack[rows.control.astype(bool)])


def _with_budget(rows: pd.DataFrame, attack: str) -> str:
    budgets = sorted({int(budget) for budget in rows.budget[rows.attack == attack]})
    return f"{attack} ({' or '.join(map(str, budgets))})" if any(budgets) else attack


def _wrapped(name: str) -> str:
    plain, bracket, inside = name.partition("[")
    short = plain.replace("_", "_\n") if len(plain) > 12 else plain
    return f"{short}\n[{inside}".replace(",", ",\n") if bracket else short
