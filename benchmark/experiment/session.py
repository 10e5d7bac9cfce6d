"""A session: a planned job, the run directory, and the cells that are still to run."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

from benchmark.base.errors import UserError, shown
from benchmark.evaluation.metrics import lpips_missing
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.display import Display
from benchmark.experiment.executors import Executor, Serial
from benchmark.experiment.job import Job
from benchmark.experiment.scene import check_inputs
from benchmark.experiment.store import Store
from benchmark.experiment.workers import MAX_WORKERS, Workers

MAX_TIMEOUT = 1e8
"""The longest time limit of a cell in seconds: three years, which timers take."""


@dataclass(frozen=True, eq=False)
class Session:
    """A planned job and the run directory that keeps its outcomes.

    Attributes:
        job: the grid, and on what it is planned.
        store: the run directory.
        cache: networks and mean colours that the cells share.
    """

    job: Job
    store: Store
    cache: Cache = field(default_factory=Cache)

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of the grid, in the order of the tables."""
        return self.job.cells()

    def unfinished(self) -> list[Cell]:
        """Return the cells without a final record."""
        return [cell for cell in self.cells if not ((record := self.store.record(cell.identity)) and record.status.final)]

    def failed(self) -> list[Cell]:
        """Return the cells that have failed before."""
        return [cell for cell in self.cells if (record := self.store.record(cell.identity)) and not record.status.final]

    def check(self, cells: Sequence[Cell]) -> None:
        """Load what the cells need, so that anything missing shows before the first one runs.

        Raises:
            UserError: a model, a data set or an image cannot be loaded; see `scene.check_inputs`.
        """
        lpips_missing()  # reads its weights once, before the first cell's time runs
        check_inputs(cells, self.cache)

    def executor(self, workers: int, timeout: float | None) -> Executor:
        """Return what runs cells: this process for one worker, else that many processes.

        Raises:
            UserError: the number of workers is not from 1 to `MAX_WORKERS`, or the time limit is not above 0.
        """
        if timeout is not None and not 0 < timeout < MAX_TIMEOUT:
            raise UserError(f"the time limit should be a number of seconds above 0, not {shown(timeout)}")
        if not 1 <= workers <= MAX_WORKERS:
            raise UserError(f"the number of workers should be from 1 to {MAX_WORKERS}, not {shown(workers)}")
        return Serial(self.cache, timeout) if workers == 1 else Workers(self.job, workers, timeout)

    def run(self, cells: Sequence[Cell], executor: Executor, display: Display) -> Generator[Cell]:
        """Run cells, and yield each one once its outcome is saved. The run directory must be held; see `Store.writing`.

        Raises:
            UserError: the disk does not take an outcome, or a worker process does not start.
        """
        floors = sorted({cell.attack_label for cell in self.cells if cell.control and cell.attack is not None})
        grid = self.job.grid
        self.store.save_plan(grid.title, grid.success_db, grid.set, [cell.identity for cell in self.cells], floors)
        with display, closing(executor.outcomes(cells, display)) as outcomes:
            for cell, outcome in outcomes:
                self.store.save(outcome.record, outcome.samples)
                display.end(cell, outcome.record)
                yield cell
