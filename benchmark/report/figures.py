"""Draw the figures for a paper, each as PNG and PDF: heat maps, PSNR with intervals, reconstructions, and `curves`."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark.experiment.grid import ORACLE
from benchmark.report import escape
from benchmark.report.batches import first_update, whole_batch
from benchmark.report.curves import psnr_by_images, psnr_by_timestep, with_image_counts
from benchmark.report.pictures import picture
from benchmark.report.results import IMAGE_KEY, SCENE_COLUMNS, Results, select
from benchmark.report.strongest import PREFIX

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
MAX_SHEET_PAIRS = 12
"""Maximum number of pairs of defense and attack on one sheet if a scene has many defenses."""
MAX_SIDE_BY_SIDE = 9
"""Maximum number of defenses for which a scene has a figure with one panel per defense. More are only in the heat map."""
MIN_TIMESTEPS_FOR_CURVE = 5
"""Minimum number of different timesteps for which PSNR is drawn over the timestep."""
MIN_IMAGE_COUNTS_FOR_CURVE = 3
"""Minimum number of different image counts behind an update for which PSNR is drawn over the image count."""
INCHES_PER_LETTER = 0.06
"""Width of one letter of a label in the font of the figures."""
NEGLIGIBLE_DB = 1.0
"""Gain over the floor that the figure marks with a line. Below it, the defense counts as effective."""
LABEL_WIDTH = 11
"""Maximum letters per line of a name on the horizontal axis or above a picture."""
NAME_COLUMNS = (*SCENE_COLUMNS, "timestep", "defense", "attack", "source", "status")
"""Columns whose text appears in a figure."""
LIGHT_BACKGROUND_DB = 33
"""PSNR in dB above which the colour map is light enough for dark text."""


def write_figures(results: Results, table: pd.DataFrame, best: pd.DataFrame, directory: Path) -> list[Path]:
    """Draw the figures of every scene and return the PNG files.

    Args:
        results: the run.
        table: its leaderboard.
        best: rows of the `strongest` attacks.
        directory: folder of the figures; made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    title, samples = escape.figure(results.title), _with_drawable_names(results.samples)
    results = replace(results, title=title, samples=samples)
    table, best = _with_drawable_names(table), _with_drawable_names(best)
    written = []
    with plt.rc_context(STYLE), warnings.catch_warnings():
        for harmless in ("Glyph .* missing from", "constrained_layout not applied"):  # missing letter, or no space for a name
            warnings.filterwarnings("ignore", message=harmless)
        for name, figure in _figures(results, table, best):
            for suffix in ("png", "pdf"):
                figure.savefig(directory / f"{name}.{suffix}", dpi=200)
            plt.close(figure)
            written.append(directory / f"{name}.png")
    return written


def _with_drawable_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with each name in a form that a figure can show."""

    def drawable(name: object) -> object:
        if not isinstance(name, str):
            return name
        prefix = PREFIX if name.startswith(PREFIX) else ""
        return prefix + escape.figure(name.removeprefix(prefix))

    return frame.assign(**{column: frame[column].map(drawable) for column in NAME_COLUMNS if column in frame})


def _figures(results: Results, table: pd.DataFrame, best: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    for key, rows in table.groupby(SCENE_COLUMNS, sort=False):
        label = " · ".join(map(str, key))
        ending = _ending(key)
        samples = results.samples
        if len(samples):
            samples = samples[np.logical_and.reduce([samples[c] == v for c, v in zip(SCENE_COLUMNS, key, strict=True)])]
        yield f"heatmap-{ending}", heat_map(rows, f"{results.title}\n{label}")
        winners = select(best, dict(zip(SCENE_COLUMNS, key, strict=True)))
        many = rows.defense.nunique() > MAX_SIDE_BY_SIDE
        if len(winners) > 1:
            yield f"protection-{ending}", protection(winners, f"{results.title}\n{label}")
        if len(samples) and (samples.attack != ORACLE).any():
            if not many:
                yield f"psnr-{ending}", psnr_by_attack(rows, f"{results.title}\n{label}")
            yield from _sheets(samples, winners if many else None, ending, f"{results.title}\n{label}")
            yield from _batches(samples, ending, f"{results.title}\n{label}")
            if samples.timestep.nunique() >= MIN_TIMESTEPS_FOR_CURVE:
                yield f"timesteps-{ending}", psnr_by_timestep(samples, f"{results.title}\n{label}")
    table = with_image_counts(table)
    for key, rows in table.groupby(["dataset", "model", "image_size", "timestep"], sort=False):
        if rows.images.nunique() >= MIN_IMAGE_COUNTS_FOR_CURVE and not rows.control.all():
            label = "{} · {} · {}x{} · t={}".format(*key[:3], *key[2:])
            yield f"images-{_ending(key)}", psnr_by_images(rows, f"{results.title}\n{label}")


def _sheets(samples: pd.DataFrame, winners: pd.DataFrame | None, ending: str, title: str) -> Iterator[tuple[str, Figure]]:
    """Yield sheets of reconstructions: of every attack under every defense, or only of the attacks in `winners`."""
    attacks = samples[~samples.control & (samples.attack != ORACLE)]
    columns = list(attacks.sort_values("defense", key=_none_first).groupby(["defense", "attack"], sort=False).groups)
    if winners is not None:
        columns = [(row.defense, str(row.attack).removeprefix(PREFIX)) for row in winners.itertuples()]
    per_sheet = MAX_SHEET_PAIRS if winners is not None else max(1, len(columns))
    sheets = [columns[start : start + per_sheet] for start in range(0, len(columns), per_sheet)] or [[]]
    for number, pairs in enumerate(sheets, 1):
        yield f"reconstructions{f'-{number}' if len(sheets) > 1 else ''}-{ending}", sheet(samples, pairs, title)


def _batches(samples: pd.DataFrame, ending: str, title: str) -> Iterator[tuple[str, Figure]]:
    """Yield the first update of the best attack of a scene, if several images lie behind it. A lost image counts as 0 dB."""
    attacks = samples[~samples.control & (samples.attack != ORACLE)]
    medians = attacks.psnr.fillna(0).groupby([attacks.defense, attacks.attack], sort=False).median()
    if len(medians):
        defense, attack = medians.idxmax()
        update = first_update(attacks[(attacks.defense == defense) & (attacks.attack == attack)])
        if len(update):
            yield f"batch-{ending}", whole_batch(update, f"{title}\nbest attack: {attack} vs {defense}; its first update")


def _ending(key: tuple[str, ...]) -> str:
    """Return the part of a file name that stands for a scene. It gets a hash if the name would be ambiguous or long."""
    text = "-".join(map(str, key)).replace("=", "")
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
    if readable == text.replace(" ", "-") and len(readable) <= 80:
        return readable
    return f"{readable[:60]}-{hashlib.blake2b(text.encode(errors='replace'), digest_size=4).hexdigest()}"


def protection(winners: pd.DataFrame, title: str) -> Figure:
    """Draw the gain of the strongest attack over the floor, with its 95% interval. The defense that protects best is on top."""
    winners = winners.sort_values("psnr_gain", ascending=False, kind="stable")
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.2 * len(winners)), layout="constrained")
    for y, row in enumerate(winners.itertuples()):
        colour = "C0" if row.knows == "weights" else "C1"
        axes.plot([row.psnr_gain_ci_low, row.psnr_gain_ci_high], [y, y], color=colour, linewidth=1.4)
        axes.plot(row.psnr_gain, y, "o", color=colour, markersize=4)
        high = np.nanmax([row.psnr_gain, row.psnr_gain_ci_high])
        name = str(row.attack).removeprefix(PREFIX)
        axes.annotate(name, (high, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=6, color="0.4")
    axes.axvline(0, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    axes.axvline(NEGLIGIBLE_DB, color="0.85", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(winners)), list(winners.defense))
    axes.set_ylim(-0.6, len(winners) - 0.4)
    axes.grid(axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    handles = [Line2D([], [], color=colour, marker="o", markersize=4, linewidth=1.4) for colour in ("C1", "C0")]
    figure.legend(
        handles, ["noise or timestep granted (laboratory)", "both private (realistic)"], loc="outside lower center", ncols=2
    )
    axes.set_xlabel(
        f"gain of the strongest attack over the floor (dB) with 95% interval; dashed: 0, grey: {NEGLIGIBLE_DB:g} dB"
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def heat_map(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the median PSNR of each attack under each defense as a heat map.

    A cell without a value shows its status. An incomplete cell shows how many images it has. Defenses are columns if there
    are few of them, and rows if there are many.
    """
    attacks, defenses = _order(rows), list(dict.fromkeys(rows.sort_values("defense").defense))
    defenses.sort(key=lambda name: (name != "none", name))
    many = len(defenses) > MAX_SIDE_BY_SIDE
    across, down = (attacks, defenses) if many else (defenses, attacks)
    figure, axes = plt.subplots(figsize=(1.3 + 1.0 * len(across), 1.2 + 0.42 * len(down)))
    values = np.full((len(down), len(across)), np.nan)
    places = {(defense, attack): _place(down, across, defense, attack) for defense in defenses for attack in attacks}
    by_pair: dict[tuple[str, str], Any] = {(str(row.defense), str(row.attack)): row for row in rows.itertuples()}
    for pair, row in by_pair.items():
        values[places[pair]] = row.psnr_median
    colours = plt.get_cmap("viridis").with_extremes(bad="0.93")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=5, vmax=60, aspect="auto")
    for pair, (y, x) in places.items():
        dark = pair in by_pair and values[y, x] < LIGHT_BACKGROUND_DB
        colour = ("white" if dark else "0.2") if pair in by_pair else "0.5"
        text = _heat_text(by_pair[pair]) if pair in by_pair else "not run"
        axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
    with_budgets = [_with_budget(rows, name) for name in attacks]
    wrapped = [name if many else _wrapped(name) for name in defenses]
    axes.set_xticks(range(len(across)), [_wrapped(name) for name in with_budgets] if many else wrapped)
    axes.set_yticks(range(len(down)), wrapped if many else with_budgets)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.02)
    bar.set_label("median PSNR (dB)")
    axes.set_xlabel("in brackets: budget in evaluations per update", loc="left", color="0.4")
    bar.outline.set_visible(False)
    return figure


def _place(down: list[str], across: list[str], defense: str, attack: str) -> tuple[int, int]:
    names = (defense, attack) if defense in down else (attack, defense)
    return down.index(names[0]), across.index(names[1])


def _heat_text(row: Any) -> str:
    text = row.status if np.isnan(row.psnr_median) else f"{row.psnr_median:.1f}"
    lost = row.n_ok < row.n_total and row.status != "skipped"
    return f"{text}\n{row.n_ok}/{row.n_total}" if lost else text


def psnr_by_attack(rows: pd.DataFrame, title: str) -> Figure:
    """Draw the median PSNR with its 95% interval, one panel per defense. The better floor is dashed; the oracle is left out."""
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
    text_x = 2.0
    if floors.notna().any():
        text_x += floors.max()
        axes.axvline(floors.max(), color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    for row in rows.itertuples():
        y = attacks.index(row.attack)
        if np.isnan(row.psnr_median):
            axes.text(text_x, y, row.status, va="center", color="0.5", fontsize=7, style="italic")
            continue
        colour = "0.55" if row.control else "C0"
        if not np.isnan(row.psnr_ci_low):
            axes.plot([row.psnr_ci_low, row.psnr_ci_high], [y, y], color=colour, linewidth=1.4)
        axes.plot(row.psnr_median, y, "o", color=colour, markersize=4)
    axes.set_ylim(-0.6, len(attacks) - 0.4)
    axes.grid(axis="x", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def sheet(samples: pd.DataFrame, pairs: Sequence[tuple[str, str]], title: str) -> Figure:
    """Draw one row per private image: the original, one reconstruction with its PSNR for each pair, and the floors.

    Args:
        samples: a row per image of one scene.
        pairs: (defense, attack) of each reconstruction.
        title: title of the figure.
    """
    rows = samples[samples.attack != ORACLE]
    images = list(
        rows[IMAGE_KEY].drop_duplicates().sort_values(IMAGE_KEY).head(SHEET_IMAGES).itertuples(index=False, name=None)
    )
    floors = rows[rows.control]
    columns = [*pairs, *floors.drop_duplicates("attack").groupby(["defense", "attack"], sort=False).groups]
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
        row_cells = [cells.get((*column, *image)) for column in columns]
        original = originals[image]
        picture(grid[y, 0], original.original, original.source)
        for axes, cell in zip(grid[y, 1:], row_cells, strict=True):
            if cell is not None and cell.status == "ok":
                picture(axes, cell.reconstruction, f"{cell.psnr:.1f} dB")
            else:
                _write(axes, cell.status if cell else "no result")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _heading(defense: str, attack: str, floors: set[str]) -> str:
    return _wrapped(attack) if attack in floors else f"{_wrapped(attack)}\nvs {_wrapped(defense)}"


def _write(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.5", style="italic", transform=axes.transAxes)


def _none_first(names: pd.Series[str]) -> pd.Series[str]:
    return names.where(names != "none", "")


def _order(rows: pd.DataFrame) -> list[str]:
    """Return the attacks sorted by their best median PSNR: the oracle first, the other controls last."""
    best = rows.groupby("attack").psnr_median.max()
    controls = _controls(rows)
    return sorted(best.index, key=lambda name: (name != ORACLE, name in controls, -np.nan_to_num(best[name], nan=-1)))


def _controls(rows: pd.DataFrame) -> set[str]:
    return set(rows.attack[rows.control.astype(bool)])


def _with_budget(rows: pd.DataFrame, attack: str) -> str:
    budgets = sorted({int(budget) for budget in rows.budget[rows.attack == attack]})
    return f"{attack} ({' or '.join(map(str, budgets))})" if any(budgets) else attack


def _wrapped(name: str) -> str:
    """Return the name in lines of at most `LABEL_WIDTH` letters if possible. Break after `_`, `,` or `+` or before brackets."""
    lines = [""]
    for part in re.split(r"(?<=[_,+])|(?=\[)|(?= \()", name):
        if lines[-1] and len(lines[-1] + part) > LABEL_WIDTH:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "\n".join(lines)
