"""Gradient matching: search for what, put through the clients' training, gives the update that was observed."""

from benchmark.matching.adam import adam, cosine_decay, signed_adam
from benchmark.matching.defense_aware import distance, likelihood, match_defense_aware
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import cosine_distance, layerwise_cosine_distance, squared_distance, total_variation
from benchmark.matching.problem import clean_guess, gaussian_start, mean_colour_start, start_variables

__all__ = [
    "Task",
    "adam",
    "clean_guess",
    "cosine_decay",
    "cosine_distance",
    "distance",
    "gaussian_start",
    "layerwise_cosine_distance",
    "lbfgs",
    "likelihood",
    "match",
    "match_defense_aware",
    "mean_colour_start",
    "signed_adam",
    "squared_distance",
    "start_variables",
    "total_variation",
]
