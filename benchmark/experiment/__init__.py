"""An experiment: a grid is planned as cells, each cell is run to a record, and a run directory keeps the records."""

from benchmark.experiment.grid import Grid, read

__all__ = ["Grid", "read"]
