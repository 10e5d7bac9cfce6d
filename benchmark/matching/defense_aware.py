"""What an attacker who knows the defense compares: what the client did to its update is done to the guess, or allowed for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from benchmark.disclosure import User
from benchmark.matching.engine import Guessing, Task, match
from benchmark.matching.objectives import (
    Distance,
    clipped,
    gaussian_nll,
    laplace_distance,
    masked,
    outside_cells,
    profile_nll,
    relative_noise,
    squared_distance,
)
from benchmark.matching.search import Optimiser, Solution, Variables
from benchmark.types import PublicParameters, Update

COMPARISON_PARAMETERS = PublicParameters.used_by(User.COMPARISON)
"""The public parameters that `as_released` takes account of."""

DISTANCE_PARAMETERS = PublicParameters.used_by(User.COMPARISON, User.DISTANCE)
"""The public parameters that `distance` takes account of."""

LIKELIHOOD_PARAMETERS = PublicParameters.used_by(User.COMPARISON, User.DISTANCE, User.LIKELIHOOD)
"""The public parameters that `likelihood` takes account of."""


def match_defense_aware(
    tasks: Sequence[Task],
    guess: Guessing,
    fit: Callable[[PublicParameters], Distance],
    optimise: Optimiser,
    regularise: Callable[[Variables], Tensor] | None = None,
) -> list[Solution]:
    """Return what `match` finds with the distance that `fit` makes of each task's public parameters."""
    found: dict[Task, Solution] = {}
    for public in dict.fromkeys(task.seen.public for task in tasks):
        alike = [task for task in tasks if task.seen.public == public]
        found |= zip(alike, match(alike, guess, fit(public), optimise, regularise), strict=True)
    return [found[task] for task in tasks]


def distance(public: PublicParameters) -> Distance:
    """The squared distance, made to fit the defense.

    The guessed update is clipped as the client's was; coordinates that were pruned are left out; of rounded ones the distance
    to their cells counts, and under Laplace noise nearly the absolute distance, its negative log-likelihood. Exact where there
    is one image in one step: of several images the mean's gradient is clipped, where `dp_sgd` clips each one's.
    """
    return as_released(public, _plain(public))


def likelihood(public: PublicParameters) -> Distance:
    """The negative log-likelihood of the update, but for a constant: `distance`, over what is known of the noise's size.

    Where nothing is known of it its likeliest deviation is put in; for rounded coordinates without noise that is a stand-in, as
    every update in the same cells is as likely as any other.
    """
    plain = _plain(public)
    if public.noise_std:
        return as_released(public, gaussian_nll(public.noise_std, plain))
    if ratio := public.laplace_ratio or public.gaussian_ratio:
        return as_released(public, _over_relative(ratio, bool(public.laplace_ratio), plain))
    return as_released(public, profile_nll(plain))


def _plain(public: PublicParameters) -> Distance:
    """Noise is taken to be larger than the cells of what was rounded after it."""
    if public.laplace_ratio:
        return laplace_distance(public.laplace_ratio)
    noisy = public.noise_std or public.gaussian_ratio
    return outside_cells(public.bits) if public.bits and not noisy else squared_distance


def as_released(public: PublicParameters, compare: Distance) -> Distance:
    """The comparison after the client's own clipping, done on the guess, and over the coordinates that were not pruned."""
    if public.kept_share is not None and public.kept_share < 1:
        compare = masked(compare)
    for norm in (public.update_clip_norm, public.clip_norm):
        compare = clipped(compare, norm) if norm else compare
    return compare


def _over_relative(ratio: float, laplace: bool, compare: Distance) -> Distance:
    """Divided by what the logarithm of the noise's density divides by: sigma / sqrt(2) for Laplace, 2 sigma^2 for Gauss."""

    def scaled(update: Update, observed: Update) -> Tensor:
        sigma = relative_noise(ratio, observed)
        return compare(update, observed) / (sigma / math.sqrt(2) if laplace else 2 * sigma.square())

    return scaled
