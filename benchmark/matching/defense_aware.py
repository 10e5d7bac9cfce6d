"""Distances for an attacker who knows the defense.

They apply the client's known transformations to the guessed update before the comparison, or allow for them in the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from benchmark.disclosure import User
from benchmark.matching.engine import Guessing, Task, match
from benchmark.matching.intervals import bounds, within
from benchmark.matching.objectives import (
    Distance,
    clamped,
    clipped,
    distance_to_cells,
    gaussian_nll,
    laplace_distance,
    limited,
    masked,
    profile_nll,
    relative_noise,
    squared_distance,
)
from benchmark.matching.problem import unrolls_local_steps
from benchmark.matching.search import Optimiser, Solution, Variables
from benchmark.types import Observation, PublicParameters, Update

NOTHING = PublicParameters()
"""The public parameters of an update that no defense changes."""

COMPARISON_PARAMETERS = PublicParameters.used_by(User.COMPARISON)
"""The public parameters that `as_released` uses."""

DISTANCE_PARAMETERS = PublicParameters.used_by(User.COMPARISON, User.DISTANCE)
"""The public parameters that `distance` uses."""

LIKELIHOOD_PARAMETERS = PublicParameters.used_by(User.COMPARISON, User.DISTANCE, User.LIKELIHOOD)
"""The public parameters that `likelihood` uses."""


def match_defense_aware(
    tasks: Sequence[Task],
    guess: Guessing,
    fit: Callable[[PublicParameters], Distance],
    optimise: Optimiser,
    regularise: Callable[[Variables], Tensor] | None = None,
) -> list[Solution]:
    """Return the solutions of `match`, with the distance that `fit` builds from each task's public parameters.

    After one step of Adam, or where the message is rounded, a task compares its guess with intervals (`as_trained`).
    """
    observations = dict.fromkeys(task.observation for task in tasks)  # restarts share one
    own = {observation: as_trained(observation, fit(NOTHING)) for observation in observations}
    tasks = [replace(task, distance=own[task.observation]) for task in tasks]
    found: dict[Task, Solution] = {}
    for public in dict.fromkeys(comparable(task.observation) for task in tasks):
        alike = [task for task in tasks if comparable(task.observation) == public]
        found |= zip(alike, match(alike, guess, fit(public), optimise, regularise), strict=True)
    return [found[task] for task in tasks]


def as_trained(observation: Observation, compare: Distance) -> Distance | None:
    """Return the comparison with what is known of the client's gradient, or None if that is the update itself (`bounds`).

    The guess is clipped as the client clips it: each image's gradient if a defense states it, as in `as_released`, and then the
    gradient of the step. The latter is exact if all trained parameters are sent. A comparison with intervals takes one guess.
    """
    known = bounds(observation)
    if known is None:
        return None
    compare, norm = within(compare, known), observation.optimiser.max_norm
    if norm is not None and not unrolls_local_steps(observation):
        compare = clipped(compare, norm)
    return as_released(replace(NOTHING, clip_norm=comparable(observation).clip_norm), compare)


def comparable(observation: Observation) -> PublicParameters:
    """Return the public parameters that describe what the engine computes from a guess.

    It follows several steps of an optimiser to their update. A norm that the gradients were clipped to does not hold for it,
    unless the steps are those of plain SGD.
    """
    moves = unrolls_local_steps(observation) and not observation.optimiser.is_plain
    return replace(observation.public, clip_norm=None) if moves else observation.public


def distance(public: PublicParameters) -> Distance:
    """Return the squared distance, adapted to the defense.

    The guessed update is clipped as the client clips its own. A coordinate at a known limit is a bound. Pruned coordinates are
    left out. For rounded coordinates, the distance to their cells counts. Under Laplace noise it is nearly the absolute
    distance, the negative log-likelihood. The clipping is exact for one image in one step. With several images the mean's
    gradient is clipped, while `dp_sgd` clips the gradient of each image.
    """
    return as_released(public, uncorrected_distance(public))


def likelihood(public: PublicParameters) -> Distance:
    """Return the negative log-likelihood of the update, up to a constant: `distance`, scaled by the size of the noise.

    If that size is not known, the most likely standard deviation is used. For rounded coordinates without noise this is a
    stand-in: every update in the same cells is equally likely.
    """
    plain = uncorrected_distance(public)
    if public.noise_std:
        return as_released(public, gaussian_nll(public.noise_std, plain))
    if laplace := _laplace_std(public):
        return as_released(public, _divided(plain, lambda observed: laplace(observed) / math.sqrt(2)))
    if ratio := public.gaussian_ratio:
        return as_released(public, _divided(plain, lambda observed: 2 * relative_noise(ratio, observed).square()))
    return as_released(public, profile_nll(plain))


def uncorrected_distance(public: PublicParameters) -> Distance:
    """Return the distance before clipping and pruning. Noise is assumed to be larger than the cells of a later rounding."""
    if laplace := _laplace_std(public):
        return laplace_distance(laplace)
    return distance_to_cells(public.bits) if public.bits and not _noisy(public) else squared_distance


def as_released(public: PublicParameters, compare: Distance) -> Distance:
    """Return the comparison with the client's own clipping applied to the guess, over the coordinates that were not pruned."""
    if public.kept_share is not None and public.kept_share < 1:
        compare = masked(compare)
    if limit := public.coordinate_limit:
        compare = clamped(compare, limit) if _noisy(public) else limited(compare, limit)
    for norm in (public.update_clip_norm, public.clip_norm):
        compare = clipped(compare, norm) if norm else compare
    return compare


def _noisy(public: PublicParameters) -> bool:
    return bool(public.noise_std or public.gaussian_ratio or public.laplace_std or public.laplace_ratio)


def _laplace_std(public: PublicParameters) -> Callable[[Update], Tensor] | None:
    """Return the standard deviation of Laplace noise, (P,) or (1,), as a function of the observed update; None without it."""
    if std := public.laplace_std:
        return lambda observed: next(iter(observed.values())).new_tensor([std])
    if ratio := public.laplace_ratio:
        return lambda observed: relative_noise(ratio, observed)
    return None


def _divided(compare: Distance, scale: Callable[[Update], Tensor]) -> Distance:
    """Return the comparison divided by the noise scale in its log-density: sigma / sqrt(2) for Laplace, 2 sigma^2 for Gauss."""
    return lambda update, observed: compare(update, observed) / scale(observed)
