"""Run a grid, and read a run directory: part of the Python interface (`import gidbench`)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmark.base.errors import UserError
from benchmark.base.machine import configure_torch, device_name
from benchmark.base.paths import user_path
from benchmark.experiment.display import choose
from benchmark.experiment.grid import Grid, read_grid
from benchmark.experiment.job import Job
from benchmark.experiment.session import Session
from benchmark.experiment.store import Store
from benchmark.report import tables
from benchmark.report.build import build_report
from benchmark.report.leaderboard import leaderboard
from benchmark.report.results import Results, read_results
from benchmark.report.strongest import strongest


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read into memory.

    Attributes:
        path: the run directory.
        leaderboard: the rows of `leaderboard.csv`: one per attack under each defense of each scene, then the strongest attacks.
        cells: one row per finished cell.
        images: one row per private image of these cells, with `original` and `reconstruction` as (H, W, C) arrays in [-1, 1].
        notes: what a table must say of these numbers.
    """

    path: Path
    leaderboard: pd.DataFrame
    cells: pd.DataFrame
    images: pd.DataFrame
    notes: Sequence[str]


def run(
    grid: Grid | Path | str,
    out: Path | str | None = None,
    workers: int = 1,
    device: str = "auto",
    include: Sequence[Path | str] = (),
    timeout: float | None = None,
) -> Run:
    """Run the cells of a grid that have not finished yet, and write the tables and figures.

    With several workers, a script must call this below `if __name__ == "__main__":`, as always with spawned processes. Times
    that were measured with several workers cannot be compared with others, because workers share the cores.

    Args:
        grid: a grid, or the name or the YAML file of one.
        out: the run directory. None stands for `results/runs/NAME`, if `grid` is a name or a file.
        workers: processes that run cells side by side.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        include: folders with plugins of your own.
        timeout: seconds after which a cell is given up.

    Raises:
        UserError: the grid is not valid, an input is missing, or the disk does not take the results.
    """
    configure_torch()
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError("a script that starts workers must call `run` below `if __name__ == '__main__':`")
    if out is None and isinstance(grid, Grid):
        raise UserError("this grid has no file name: give the run directory as `out`")
    store = Store(user_path(out) if out is not None else Path("results", "runs", Path(str(grid)).stem))
    chosen = grid if isinstance(grid, Grid) else read_grid(str(grid))
    session = Session(Job(chosen, [user_path(folder) for folder in include], device_name(device)), store)
    executor = session.executor(workers, timeout)
    cells = session.unfinished()
    session.check(cells)
    with store.writing(), closing(session.run(cells, executor, choose("none", cells))) as saved:
        for _ in saved:
            pass
        found, table = build_report(store)
    return _read(store, found, table)


def load(run_dir: Path | str) -> Run:
    """Read a run directory without changing it.

    Raises:
        UserError: it is no run directory, or no cell in it has finished.
    """
    store = Store(user_path(run_dir))
    found = read_results(store)
    if found.cells.empty:
        raise UserError(f"{store.path} has no finished cell yet")
    return _read(store, found, leaderboard(found))


def _read(store: Store, found: Results, table: pd.DataFrame) -> Run:
    rows = tables.published(table, strongest(found, table))
    return Run(store.path, rows, found.cells, found.samples, found.notes)
