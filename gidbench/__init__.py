"""The Python interface of GIDBench: simulate a client, attack what it sends, run grids, and read their results.

The code is in the package `benchmark`; this package names what users need of it.
"""

from benchmark import __version__
from benchmark.api import (
    Grid,
    Observation,
    Reconstruction,
    Run,
    Scenario,
    Simulation,
    UserError,
    Victim,
    attack,
    load,
    run,
    simulate,
)

__all__ = [
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
    "load",
    "run",
    "simulate",
]
