"""Executors run cells and yield their outcomes. `Serial` runs them in this process, `workers.Workers` in several others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from benchmark.base.events import watching
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.display import Display
from benchmark.experiment.runner import Outcome, run_cell
from benchmark.matching.plans import shared_plans


class Executor(Protocol):
    """Runs cells."""

    def outcomes(self, cells: Sequence[Cell], display: Display) -> Generator[tuple[Cell, Outcome]]:
        """Yield each cell with its outcome as soon as it ends. Tell `display` when a cell starts and what its searches do.

        Whoever closes the iterator early gives up the cells that are running.
        """


@dataclass(frozen=True, eq=False)
class Serial:
    """Runs one cell after the other in this process.

    Attributes:
        cache: networks and mean colours that the cells share.
        timeout: seconds after which a cell is given up, None for no limit.
    """

    cache: Cache
    timeout: float | None = None

    def outcomes(self, cells: Sequence[Cell], display: Display) -> Generator[tuple[Cell, Outcome]]:
        """See `Executor.outcomes`."""
        with shared_plans():
            for cell in cells:
                display.begin(cell)
                with watching(partial(display.step, cell)):
                    outcome = run_cell(cell, self.cache, self.timeout)
                yield cell, outcome
