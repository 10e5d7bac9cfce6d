"""Build the tables and figures of a run directory from its records alone."""

from __future__ import annotations

import pandas as pd

from benchmark.base.errors import UserError
from benchmark.experiment.store import Store
from benchmark.report import figures, tables
from benchmark.report.leaderboard import leaderboard
from benchmark.report.publish import FIGURES, publishing
from benchmark.report.results import Results, read_results
from benchmark.report.strongest import strongest


def build_report(store: Store) -> tuple[Results, pd.DataFrame]:
    """Write `leaderboard.csv`, `.md`, `.tex` and `figures/`. Return the results of the run and its leaderboard.

    Raises:
        UserError: the store is not a run directory, no cell has finished, memory runs out, or the report cannot be written.
    """
    store.check()
    results = read_results(store)
    if results.cells.empty:
        raise UserError("; ".join([f"{store.path} has no finished cell yet", *results.damage]).rstrip("."))
    try:
        table = leaderboard(results)
        best = strongest(results, table)
        with publishing(store.path) as directory:
            tables.write_tables(results, table, best, directory)
            figures.write_figures(results, table, best, directory / FIGURES)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the report to {store.path}: {reason}; the records are kept") from error
    except MemoryError as error:
        raise UserError(f"the memory does not suffice for the report on {store.path}; the records are kept") from error
    return results, table
