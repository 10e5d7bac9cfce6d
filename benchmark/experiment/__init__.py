"""Experiments: a grid is planned as cells, each cell is run, and its record is stored in a run directory."""

from benchmark.experiment.grid import Grid, read_grid

__all__ = ["Grid", "read_grid"]
