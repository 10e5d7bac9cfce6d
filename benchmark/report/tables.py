"""The leaderboard as files and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.report.leaderboard import SCENE, Results

REALISTIC = "Realistic: clients keep noise and timestep to themselves"
LABORATORY = "Laboratory: timestep or noise is granted to the attack, which no real client does"

HEADINGS = {
    "attack": "attack",
    "defense": "defense",
    "knows": "knows",
    "adaptive": "adaptive",
    "budget": "budget",
    "n": "n ok",
    "psnr": "PSNR median [95%]",
    "gain": "gain over floor [95%]",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "success": "success [95%]",
    "epsilon": "epsilon total",
    "status": "status",
}

TERMINAL = {"attack": 0, "budget": 6, "n ok": 4, "PSNR median": 20, "gain over floor": 20, "success": 7}
"""Columns of the printed table and their widths; 0 is that of the longest name."""

NARROWEST = 100
"""Columns assumed where the output is no terminal."""


def sections(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Heading and rows of each table that people read: per scene, the realistic setting first."""
    for key, scene in table.groupby(SCENE, sort=False):
        name = " · ".join(map(str, key)) + f" ({scene.model_state.iloc[0]}, {scene.prediction_type.iloc[0]})"
        realistic = scene.knows == "weights"
        for heading, rows in ((REALISTIC, scene[realistic]), (LABORATORY, scene[~realistic])):
            if len(rows):
                yield f"{heading} · {name}", rows


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns and number formats that people read."""
    shown = [
        {
            "attack": row.attack,
            "defense": row.defense,
            "knows": row.knows,
            "adaptive": "yes" if row.adaptive else "no",
            "budget": str(row.budget),
            "n": f"{row.n_ok}/{row.n_total}",
            "psnr": _interval(row.psnr_median, row.psnr_ci_low, row.psnr_ci_high, ".1f"),
            "gain": _interval(row.psnr_gain, row.psnr_gain_ci_low, row.psnr_gain_ci_high, "+.1f"),
            "ssim": _number(row.ssim_mean, ".3f"),
            "lpips": _number(row.lpips_mean, ".3f"),
            "success": _interval(row.success_rate, row.success_ci_low, row.success_ci_high, ".0%"),
            "epsilon": _number(row.epsilon_total, ".3g"),
            "status": row.status if not row.reason else f"{row.status}: {row.reason}",
        }
        for row in rows.itertuples()
    ]
    return pd.DataFrame(shown).rename(columns=HEADINGS)


def captions(results: Results) -> list[str]:
    """The lines that stand with every table."""
    lines = [
        "PSNR in dB, peak 1 on [0, 1] images, capped at 100; success from "
        f"{results.success_db:g} dB; intervals are 95%, by photograph; budget in evaluations per victim.",
        *results.notes,
    ]
    if len(results.cells) < results.planned:
        lines.append(f"Unfinished: {len(results.cells)} of {results.planned} cells have run.")
    return lines


def write(results: Results, table: pd.DataFrame, directory: Path) -> None:
    """Write `leaderboard.csv` (every column), `leaderboard.md` and `leaderboard.tex` (the readable ones)."""
    table.to_csv(directory / "leaderboard.csv", index=False)
    (directory / "leaderboard.md").write_text(_markdown(results, table), encoding="utf-8")
    (directory / "leaderboard.tex").write_text(_latex(results, table), encoding="utf-8")


def show(results: Results, table: pd.DataFrame) -> None:
    """Print the readable tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=NARROWEST)
    footnotes: dict[str, int] = {}
    width = max(map(len, table.attack))
    for heading, rows in sections(table):
        console.print(f"\n{escape(heading)}", style="bold underline")
        for defense, group in rows.groupby("defense", sort=False):
            console.print()
            console.print(_terminal(str(defense), group, width, footnotes))
    console.print(f"\n{escape(results.title)}", style="bold")
    for reason, number in footnotes.items():
        console.print(f"({number}) {escape(reason)}", style="dim")
    for line in captions(results):
        console.print(escape(line), style="dim")


def _terminal(defense: str, rows: pd.DataFrame, width: int, footnotes: dict[str, int]) -> Table:
    """The rows of one defense in 80 columns; reasons go to the numbered `footnotes`."""
    first = rows.iloc[0]
    guarantee = "" if pd.isna(first.epsilon_total) else f", epsilon {first.epsilon_total:.3g} in total"
    title = f"[bold]{escape(defense)}[/] [dim]· knows {first.knows}{guarantee}[/]"
    printed = Table(title=title, title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0))
    for name, columns in TERMINAL.items():
        text = name in ("attack", "PSNR median", "gain over floor")
        printed.add_column(
            name, justify="left" if text else "right", min_width=columns or width, no_wrap=True, style="", header_style="dim"
        )
    for row in rows.itertuples():
        mark = f" ({footnotes.setdefault(row.reason, len(footnotes) + 1)})" if row.reason else ""
        psnr = _interval(row.psnr_median, row.psnr_ci_low, row.psnr_ci_high, ".1f")
        printed.add_row(
            escape(row.attack),
            str(row.budget),
            f"{row.n_ok}/{row.n_total}",
            (row.status if psnr == "–" else psnr) + mark,
            _interval(row.psnr_gain, row.psnr_gain_ci_low, row.psnr_gain_ci_high, "+.1f"),
            _number(row.success_rate, ".0%"),
        )
    return printed


def _markdown(results: Results, table: pd.DataFrame) -> str:
    parts = [f"# {results.title}", *captions(results)]
    for heading, rows in sections(table):
        frame = readable(rows)
        cells = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]
        parts += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _latex(results: Results, table: pd.DataFrame) -> str:
    """One table environment per section, for the booktabs package."""
    parts = ["% needs \\usepackage{booktabs}"]
    for heading, rows in sections(table):
        frame = readable(rows)
        styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        caption = _escape(f"{results.title}. {heading}. {' '.join(captions(results))}")
        parts.append(styler.to_latex(hrules=True, position="t", position_float="centering", caption=caption))
    return "\n".join(parts)


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}").replace("·", r"$\cdot$")


def _number(value: float, form: str) -> str:
    return "–" if pd.isna(value) else format(value, form)


def _interval(value: float, low: float, high: float, form: str) -> str:
    if pd.isna(value):
        return "–"
    bounds = f" [{format(low, form)}, {format(high, form)}]" if not pd.isna(low) else ""
    return format(value, form) + bounds
