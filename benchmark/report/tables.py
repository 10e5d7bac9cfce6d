"""Write the leaderboard to files and show it on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, JustifyMethod
from rich.table import Table

from benchmark.evaluation import metrics
from benchmark.evaluation.metric import ColumnWidth, TableColumn
from benchmark.experiment.grid import ORACLE
from benchmark.report import escape
from benchmark.report.expected import notes_on_expectations
from benchmark.report.notes import notes_on_floors
from benchmark.report.results import SCENE_COLUMNS, Results

REALISTIC = "Realistic: clients keep noise and timestep to themselves"
LABORATORY = "Laboratory: timestep or noise is granted to the attack, which no real client does"
STRONGEST = "The strongest attack under each defense, chosen inside the bootstrap"

CSV_SCHEMA = 1
"""Version of the format of `leaderboard.csv`; see SCHEMAS.md. Raise it when a column is removed or changes its meaning."""

MISSING = "–"
"""Text in place of a missing number."""

MAX_NAME_WIDTH = 24
"""Maximum width of the name of an attack in terminal columns. A longer name continues on the next line."""

DEFAULT_WIDTH = 100
"""Width in columns that is assumed if the output is not a terminal."""


def sections(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield heading and rows of each readable table: scene by scene, the realistic setting first."""
    for key, scene in table.groupby(SCENE_COLUMNS, sort=False):
        name = " · ".join(map(str, key)) + f" ({_model_description(scene.iloc[0])})"
        realistic = scene.knows == "weights"
        for heading, rows in ((REALISTIC, scene[realistic]), (LABORATORY, scene[~realistic])):
            if len(rows):
                yield f"{heading} · {name}", rows


def _model_description(row: Any) -> str:
    return f"{row.model_state}, {row.prediction_type}, prior: {row.prior}"


def _as_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every readable column as text."""
    columns = _shown_numbers()
    shown = [
        {
            "attack": row.attack,
            "defense": row.defense,
            "knows": row.knows,
            "adaptive": "yes" if row.adaptive else "no",
            "budget": str(row.budget),
            "n ok": _count(row),
            **dict(zip(columns, _measurements(row, columns.values()), strict=True)),
            "expected": f"{row.expected}: {row.expected_reason}" if row.expected else MISSING,
            "status": row.status if not row.reason else f"{row.status}: {row.reason}",
        }
        for row in rows.itertuples()
    ]
    return pd.DataFrame(shown)


def _shown_numbers() -> dict[str, TableColumn]:
    """Return the readable numbers by heading. A heading shows the better direction and whether an interval follows."""
    return {
        f"{shown.header} {metric.better}{' [95%]' if shown.interval else ''}": shown
        for metric in metrics.METRICS
        for shown in metric.table_columns
    }


def captions(results: Results, table: pd.DataFrame) -> list[str]:
    """Return the lines that accompany every table."""
    lines = [
        "PSNR in dB, peak 1 on [0, 1] images, capped at 100; success from "
        f"{results.success_db:g} dB; intervals are 95%, by photograph; budget in evaluations per update.",
        *notes_on_floors(table, results.success_db, SCENE_COLUMNS, ORACLE),
        *notes_on_expectations(table, results.success_db),
        *results.notes,
    ]
    if len(results.cells) < results.planned:
        lines.append(f"Unfinished: {len(results.cells)} of {results.planned} cells have run.")
    return lines


def write_tables(results: Results, table: pd.DataFrame, best: pd.DataFrame, directory: Path) -> None:
    """Write `leaderboard.csv` with every column, and `leaderboard.md` and `leaderboard.tex` with the readable columns.

    The rows of the `strongest` attacks are last in the CSV file, and first in the other two files.
    """
    published(table, best).map(lambda value: escape.csv(value) if isinstance(value, str) else value).to_csv(
        directory / "leaderboard.csv", index=False, encoding="utf-8"
    )
    shown, lines = [*_strongest(table, best), *sections(table)], captions(results, table)
    (directory / "leaderboard.md").write_text(_markdown(results.title, lines, shown), encoding="utf-8")
    (directory / "leaderboard.tex").write_text(_latex(results.title, lines, shown), encoding="utf-8")


def published(table: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `leaderboard.csv`: every attack and control, then the strongest attacks."""
    return pd.concat([table, best], ignore_index=True).drop(columns="control").assign(schema=CSV_SCHEMA)


def _strongest(table: pd.DataFrame, best: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the table of the strongest attacks for each scene with more than one attack."""
    attacks = table[~table.control.astype(bool)].groupby(SCENE_COLUMNS, sort=False).attack.nunique()
    for key, rows in best.groupby(SCENE_COLUMNS, sort=False):
        if attacks[key] > 1:
            yield f"{STRONGEST} · {' · '.join(map(str, key))} ({_model_description(rows.iloc[0])})", rows


def print_tables(results: Results, table: pd.DataFrame) -> None:
    """Print the readable tables."""
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=DEFAULT_WIDTH)
    footnotes: dict[str, int] = {}
    width = min(MAX_NAME_WIDTH, max(map(len, table.attack)))
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
    """Return the rows of one defense as a table of 80 columns. Reasons become numbered `footnotes`."""
    title = f"[bold]{escape.terminal(defense)}[/] [dim]· {escape.terminal(_knowledge(rows))}[/]"
    printed = Table(title=title, title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0))
    printed.add_column("attack", min_width=width, max_width=width, overflow="fold", header_style="dim")
    for name, room in (("budget", 6), ("n ok", 4)):
        printed.add_column(name, justify="right", min_width=room, no_wrap=True, header_style="dim")
    columns = [shown for shown in _shown_numbers().values() if shown.width]
    for shown in columns:
        justify: JustifyMethod = "left" if shown.width is ColumnWidth.INTERVAL else "right"
        printed.add_column(shown.header, justify=justify, min_width=shown.width, no_wrap=True, header_style="dim")
    for row in rows.itertuples():
        mark = f" ({footnotes.setdefault(row.reason, len(footnotes) + 1)})" if row.reason else ""
        first, *others = _measurements(row, columns, narrow=True)
        printed.add_row(escape.terminal(_name(row)), str(row.budget), _count(row), first + mark, *others)
    return printed


def _markdown(title: str, captions: Sequence[str], shown: Sequence[tuple[str, pd.DataFrame]]) -> str:
    parts = [f"# {escape.markdown(title)}", *map(escape.markdown, captions)]
    for heading, rows in shown:
        frame = _as_text(rows)
        cells = [list(frame.columns), *frame.to_numpy().tolist()]
        lines = ["| " + " | ".join(escape.markdown(str(cell)) for cell in row) + " |" for row in cells]
        lines.insert(1, "| --- " * len(frame.columns) + "|")
        parts += [f"## {escape.markdown(heading)}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _latex(title: str, captions: Sequence[str], shown: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """Return one full-width table per section, with one block of rows per defense. Reasons are only in the other files."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    columns = {heading: shown for heading, shown in _shown_numbers().items() if shown.paper}
    headings = ["attack", "budget", "n ok", *columns]
    alignment = "lrr" + "".join("l" if shown.interval else "r" for shown in columns.values())
    for heading, rows in shown:
        lines = [_latex_row(headings)]
        for defense, group in rows.groupby("defense", sort=False):
            block = rf"\textit{{{escape.tex(str(defense))}}}, {escape.tex(_knowledge(group))}"
            lines += [r"\midrule", rf"\multicolumn{{{len(headings)}}}{{l}}{{{block}}} \\"]
            lines += [
                _latex_row([_name(row), str(row.budget), _count(row), *_measurements(row, columns.values())])
                for row in group.itertuples()
            ]
        caption = " ".join([f"{title}. {heading}.", *captions])
        parts += [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape.tex(caption)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    return "\n".join(parts)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("--" if cell == MISSING else escape.tex(cell) for cell in cells) + r" \\"


def _measurements(row: Any, columns: Iterable[TableColumn], narrow: bool = False) -> list[str]:
    """Return the numbers of a row as text. If the first has no value, return the status in its place."""
    first, *others = (_number(row, shown, narrow) for shown in columns)
    return [str(row.status) if first == MISSING else first, *others]


def _number(row: Any, shown: TableColumn, narrow: bool) -> str:
    """Return a number with its interval. In a `narrow` table, only columns with room for an interval show it."""
    value = getattr(row, shown.column)
    if pd.isna(value):
        return MISSING
    bounds = [getattr(row, name) for name in shown.interval or ()]
    if not bounds or pd.isna(bounds[0]) or (narrow and shown.width is not ColumnWidth.INTERVAL):
        return format(value, shown.form)
    return "{} [{}, {}]".format(*(format(number, shown.form) for number in (value, *bounds)))


def _knowledge(rows: pd.DataFrame) -> str:
    """Return what the attacker knows under one defense, and what the defense guarantees."""
    first = rows.iloc[0]
    guarantee = "" if pd.isna(first.epsilon_total) else f", epsilon {first.epsilon_total:.3g} in total"
    return f"knows {first.knows}{guarantee}"


def _name(row: Any) -> str:
    return f"{row.attack} (adaptive)" if row.adaptive else str(row.attack)


def _count(row: Any) -> str:
    return f"{row.n_ok}/{row.n_total}"
