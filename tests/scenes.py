"""What tests ask of single cells. They share a cache, as the cells of a run do: what one cell breaks, a later one meets."""

from collections.abc import Sequence

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
    """Return the victims of a cell and what the server sees of them."""
    scene = Scene(cell, CACHE)
    return scene.victims, scene.observations


def check(cells: Sequence[Cell]) -> None:
    """Check the inputs of cells."""
    check_inputs(cells, CACHE)


def oracle(victims: Sequence[Victim]) -> list[Reconstruction]:
    """Return the truth as if it had been rebuilt."""
    return [Reconstruction(victim.images.clone(), evaluations=0) for victim in victims]
