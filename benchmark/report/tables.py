"""The leaderboard as files and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmark.experiment.grid import ORACLE
from benchmark.report import escape
from benchmark.report.leaderboard import COLUMNS, SCENE, Results
from benchmark.report.notes import notes_on_floors

REALISTIC = "Realistic: clients keep noise and timestep to themselves"
LABORATORY = "Laboratory: timestep or noise is granted to the attack, which no real client does"
STRONGEST = "The strongest attack under each defense, chosen inside the bootstrap"

MEASUREMENTS = ("n ok", "PSNR median [95%]", "gain over floor [95%]", "SSIM", "LPIPS", "success [95%]")

TERMINAL = {"attack": 0, "budget": 6, "n ok": 4, "PSNR median": 20, "gain over floor": 20, "success": 7}
"""Columns of the printed table and their widths; 0 is that of the longest name."""

WIDEST_NAME = 24
"""Columns of an attack's name; a longer one goes on in the next line."""

NARROWEST = 100
"""Columns assumed where the output is no terminal."""


def sections(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Heading and rows of each table that people read: per scene, the realistic setting first."""
    for key, scene in table.groupby(SCENE, sort=False):
        name = " · ".join(map(str, key)) + f" ({_about(scene.iloc[0])})"
        realistic = scene.knows == "weights"
        for heading, rows in ((REALISTIC, scene[realistic]), (LABORATORY, scene[~realistic])):
            if len(rows):
                yield f"{heading} · {name}", rows


def _about(row: Any) -> str:
    return f"{row.model_state}, {row.prediction_type}, prior: {row.prior}"


def _readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Every column that people read, as text."""
    shown = [
        {
            "attack": row.attack,
            "defense": row.defense,
            "knows": row.knows,
            "adaptive": "yes" if row.adaptive else "no",
            "budget": str(row.budget),
            **dict(zip(MEASUREMENTS, _measurements(row), strict=True)),
            "epsilon total": _number(row.epsilon_total, ".3g"),
            "timestep exact": _number(row.timestep_accuracy, ".0%"),
            "noise MSE": _number(row.noise_mse_mean, ".2f"),
            "status": row.status if not row.reason else f"{row.status}: {row.reason}",
        }
        for row in rows.itertuples()
    ]
    return pd.DataFrame(shown)


def captions(results: Results, table: pd.DataFrame) -> list[str]:
    """Return the lines that stand with every table."""
    lines = [
        "PSNR in dB, peak 1 on [0, 1] images, capped at 100; success from "
        f"{results.success_db:g} dB; intervals are 95%, by photograph; budget in evaluations per update.",
        *notes_on_floors(table, results.success_db, SCENE, ORACLE),
        *results.notes,
    ]
    if len(results.cells) < results.planned:
        lines.append(f"Unfinished: {len(results.cells)} of {results.planned} cells have run.")
    return lines


def write(results: Results, table: pd.DataFrame, best: pd.DataFrame, directory: Path) -> None:
    """Write `leaderboard.csv` (every column), `leaderboard.md` and `leaderboard.tex` (the readable ones).

    The rows of `strongest` attacks come last in the first and before the others in the other two.
    """
    rows = pd.concat([table, best])[list(COLUMNS)]
    rows.map(lambda value: escape.csv(value) if isinstance(value, str) else value).to_csv(
        directory / "leaderboard.csv", index=False, encoding="utf-8"
    )
    shown, lines = [*_strongest(table, best), *sections(table)], captions(results, table)
    (directory / "leaderboard.md").write_text(_markdown(results.title, lines, shown), encoding="utf-8")
    (directory / "leaderboard.tex").write_text(_latex(results.title, lines, shown), encoding="utf-8")


def _strongest(table: pd.DataFrame, best: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """A table per scene in which there was something to choose."""
    attacks = table[~table.control.astype(bool)].groupby(SCENE, sort=False).attack.nunique()
    for key, rows in best.groupby(SCENE, sort=False):
        if attacks[key] > 1:
            yield f"{STRONGEST} · {' · '.join(map(str, key))} ({_about(rows.iloc[0])})", rows


def show(results: Results, table: pd.DataFrame) -> None:
    """Print the readable tables."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=NARROWEST)
    footnotes: dict[str, int] = {}
    width = min(WIDEST_NAME, max(map(len, table.attack)))
    for heading, rows in sections(table):
        console.print(f"\n{escape.terminal(heading)}", style="bold underline")
        for defense, group in rows.groupby("defense", sort=False):
            console.print()
            console.print(_terminal(str(defense), group, width, footnotes))
    console.print(f"\n{escape.terminal(results.title)}", style="bold")
    for reason, number in footnotes.items():
        console.print(f"({number}) {escape.terminal(reason)}", style="dim")
    for line in captions(results, table):
        console.print(escape.terminal(line), style="dim")


def _terminal(defense: str, rows: pd.DataFrame, width: int, footnotes: dict[str, int]) -> Table:
    """The rows of one defense in 80 columns; reasons go to the numbered `footnotes`."""
    title = f"[bold]{escape.terminal(defense)}[/] [dim]· {escape.terminal(_granted(rows))}[/]"
    printed = Table(title=title, title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0))
    for name, columns in TERMINAL.items():
        text = name in ("attack", "PSNR median", "gain over floor")
        printed.add_column(
            name,
            justify="left" if text else "right",
            min_width=columns or width,
            max_width=width if name == "attack" else None,
            no_wrap=name != "attack",
            overflow="fold",
            header_style="dim",
        )
    for row in rows.itertuples():
        mark = f" ({footnotes.setdefault(row.reason, len(footnotes) + 1)})" if row.reason else ""
        success = _number(row.success_rate, ".0%")
        printed.add_row(escape.terminal(_name(row)), str(row.budget), _count(row), _psnr(row) + mark, _gain(row), success)
    return printed


def _markdown(title: str, captions: Sequence[str], shown: Sequence[tuple[str, pd.DataFrame]]) -> str:
    parts = [f"# {escape.markdown(title)}", *map(escape.markdown, captions)]
    for heading, rows in shown:
        frame = _readable(rows)
        cells = [list(frame.columns), *frame.to_numpy().tolist()]
        lines = ["| " + " | ".join(escape.markdown(str(cell)) for cell in row) + " |" for row in cells]
        lines.insert(1, "| --- " * len(frame.columns) + "|")
        parts += [f"## {escape.markdown(heading)}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _latex(title: str, captions: Sequence[str], shown: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """One full-width table per section, a block of rows per defense; reasons stay in the other files."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    headings = ["attack", "budget", *MEASUREMENTS]
    for heading, rows in shown:
        lines = [_latex_row(headings)]
        for defense, group in rows.groupby("defense", sort=False):
            block = rf"\textit{{{escape.tex(str(defense))}}}, {escape.tex(_granted(group))}"
            lines += [r"\midrule", rf"\multicolumn{{{len(headings)}}}{{l}}{{{block}}} \\"]
            lines += [_latex_row([_name(row), str(row.budget), *_measurements(row)]) for row in group.itertuples()]
        caption = " ".join([f"{title}. {heading}.", *captions])
        parts += [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape.tex(caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
            r"\begin{tabular}{lrrllrrl}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    return "\n".join(parts)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == "–" else escape.tex(cell) for cell in cells) + r" \\"


def _measurements(row: Any) -> list[str]:
    ssim, lpips = _number(row.ssim_mean, ".3f"), _number(row.lpips_mean, ".3f")
    return [_count(row), _psnr(row), _gain(row), ssim, lpips, _success(row)]


def _granted(rows: pd.DataFrame) -> str:
    """What the attacker knows under one defense, and what the defense guarantees."""
    first = rows.iloc[0]
    guarantee = "" if pd.isna(first.epsilon_total) else f", epsilon {first.epsilon_total:.3g} in total"
    return f"knows {first.knows}{guarantee}"


def _name(row: Any) -> str:
    return f"{row.attack} (adaptive)" if row.adaptive else str(row.attack)


def _count(row: Any) -> str:
    return f"{row.n_ok}/{row.n_total}"


def _psnr(row: Any) -> str:
    """The median, or why there is none."""
    text = _interval(row.psnr_median, row.psnr_ci_low, row.psnr_ci_high, ".1f")
    return str(row.status) if text == "–" else text


def _gain(row: Any) -> str:
    return _interval(row.psnr_gain, row.psnr_gain_ci_low, row.psnr_gain_ci_high, "+.1f")


def _success(row: Any) -> str:
    return _interval(row.success_rate, row.success_ci_low, row.success_ci_high, ".0%")


def _number(value: float, form: str) -> str:
    return "–" if pd.isna(value) else format(value, form)


def _interval(value: float, low: float, high: float, form: str) -> str:
    if pd.isna(value):
        return "–"
    bounds = f" [{format(low, form)}, {format(high, form)}]" if not pd.isna(low) else ""
    return format(value, form) + bounds
