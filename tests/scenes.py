"""What tests ask of a cell alone, outside of any run."""

from collections.abc import Sequence

from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.experiment.scene import Scene, check_inputs
from benchmark.types import Observation, Reconstruction, Victim


def play(cell: Cell) -> tuple[list[Victim], list[Observation]]:
    """Return the victims of a cell and what the server sees of them."""
    scene = Scene(cell, Cache())
    return scene.victims, scene.observations


def check(cells: Sequence[Cell]) -> None:
    """Check the inputs of cells."""
    check_inputs(cells, Cache())


def oracle(victims: Sequence[Victim]) -> list[Reconstruction]:
    """Return the truth as if it had been rebuilt."""
    return [Reconstruction(victim.images.clone(), evaluations=0) for victim in victims]
