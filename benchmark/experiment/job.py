"""A job: a grid, and on what it is planned. Every process that receives the job plans the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.experiment.cell import Cell
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry


@dataclass(frozen=True)
class Job:
    """A grid, and on what it is planned.

    Attributes:
        grid: the axes.
        include: folders with plugins of the user.
        device: a torch device that exists, such as `cpu` or `cuda:0`.
    """

    grid: Grid
    include: Sequence[Path] = ()
    device: str = "cpu"

    def cells(self) -> list[Cell]:
        """Return every cell of the grid in the order in which they run.

        Raises:
            UserError: an axis names something unknown, or values contradict each other; see `plan`.
        """
        return plan(self.grid, Registry(self.include), self.device)
