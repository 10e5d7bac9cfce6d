"""Gradient matching: search for what, put through the clients' training, gives the update that was observed."""

from benchmark.matching.adam import adam, signed_adam
from benchmark.matching.defense_aware import distance, likelihood, match_defense_aware
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import cosine_distance, squared_distance, total_variation
from benchmark.matching.problem import flat, gaussian, granted, unknowns

__all__ = [
    "Task",
    "adam",
    "cosine_distance",
    "distance",
    "flat",
    "gaussian",
    "granted",
    "lbfgs",
    "likelihood",
    "match",
    "match_defense_aware",
    "signed_adam",
    "squared_distance",
    "total_variation",
    "unknowns",
]
