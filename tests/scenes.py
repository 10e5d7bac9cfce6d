"""Helpers for tests of single cells and of whole runs.

The cells share a cache, as in a run. If a cell breaks a shared network, a later test fails.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark.experiment import runner
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.scene import Scene, check_inputs
from benchmark.types import Observation, Reconstruction, Victim

CACHE = Cache()


def run_cell(cell: Cell, timeout: float | None = None) -> runner.Outcome:
    """Run a cell to its row."""
    return runner.run_cell(cell, CACHE, timeout)


def play(cell: Cell) -> tuple[list[Victim], list[Observation]]:
    """Return the victims of a cell and their observations."""
    scene = Scene(cell, CACHE)
    return scene.victims, scene.observations


def check(cells: Sequence[Cell]) -> None:
    """Check the inputs of cells."""
    check_inputs(cells, CACHE)


def oracle(victims: Sequence[Victim]) -> list[Reconstruction]:
    """Return perfect reconstructions."""
    return [Reconstruction(victim.images.clone(), evaluations=0) for victim in victims]


@contextlib.contextmanager
def quick_figures() -> Iterator[None]:
    """Save figures without drawing them: drawing takes nine tenths of a report's time."""
    from matplotlib.figure import Figure

    def save(figure: Figure, target: Any, **options: Any) -> None:
        if hasattr(target, "write"):
            target.write(b"figure")
        else:
            Path(target).write_bytes(b"figure")

    kept, Figure.savefig = Figure.savefig, save  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Figure.savefig = kept  # type: ignore[method-assign]
