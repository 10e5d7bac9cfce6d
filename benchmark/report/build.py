"""Tables and figures of a run directory, from its records alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmark.errors import UserError
from benchmark.report import figures, tables
from benchmark.report.leaderboard import Results, leaderboard, read
from benchmark.report.strongest import strongest
from benchmark.store import Store


def build(store: Store) -> tuple[Results, pd.DataFrame]:
    """Write `leaderboard.csv`, `.md`, `.tex` and `figures/`, and return what they show.

    Raises:
        UserError: it is no run directory, no cell of it has finished, or the disk does not take the report.
    """
    results = read(store)
    if results.cells.empty:
        raise UserError(f"{store.path} has no finished cell yet")
    table = leaderboard(results)
    try:
        best = strongest(results, table)
        tables.write(results, table, best, store.path)
        figures.write(results, table, best, _emptied(store.path / "figures"))
    except OSError as error:
        raise UserError(f"cannot write the report to {store.path}: {error.strerror}; the records are kept") from error
    return results, table


def _emptied(directory: Path) -> Path:
    """Figures of an earlier plan would stand beside tables that they do not belong to."""
    for suffix in ("png", "pdf"):
        for old in directory.glob(f"*.{suffix}"):
            old.unlink()
    return directory
