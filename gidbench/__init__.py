"""The Python interface of GIDBench: simulate a client, attack what it sends, run grids, and read their results.

The code is in the package `benchmark`; this package names what users need of it.
"""

from benchmark import __version__
from benchmark.base.errors import UserError
from benchmark.diagnosis import diagnose
from benchmark.experiment.grid import Grid
from benchmark.experiment.simulation import Simulation, attack, simulate
from benchmark.outlook import Diagnosis
from benchmark.report.run import Run, load, run
from benchmark.scenario import Scenario
from benchmark.types import Observation, Reconstruction, Victim

__all__ = [
    "Diagnosis",
    "Grid",
    "Observation",
    "Reconstruction",
    "Run",
    "Scenario",
    "Simulation",
    "UserError",
    "Victim",
    "__version__",
    "attack",
    "diagnose",
    "load",
    "run",
    "simulate",
]
