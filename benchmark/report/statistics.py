"""Intervals. Crops of one photograph are not independent, so the unit that is resampled or counted is the photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

DRAWS = 2000
LEVEL = 0.95


def median_interval(values: Sequence[float], sources: Sequence[str]) -> tuple[float, float]:
    """Percentile bootstrap 95% interval of the median, resampling whole sources; NaN with fewer than two sources."""
    groups = _groups(values, sources)
    if len(groups) < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    draws = [np.median(np.concatenate([groups[i] for i in row])) for row in _resamples(rng, len(groups))]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def rate_interval(rate: float, sources: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate, with as many independent observations as there are sources; NaN without any.

    A bootstrap would give [1, 1] when all succeed, however few they are.
    """
    if sources == 0:
        return (float("nan"), float("nan"))
    n, z = sources, float(norm.ppf((1 + LEVEL) / 2))
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def reachable_level(sources: int) -> float:
    """The most coverage that any distribution-free interval of a median can have: its whole range covers 1 - 2^(1 - n)."""
    return 1 - 2.0 ** (1 - sources)


def _groups(values: Sequence[float], sources: Sequence[str]) -> list[NDArray[np.float64]]:
    array, names = np.asarray(values, dtype=float), np.asarray(sources)
    return [array[names == name] for name in sorted(set(sources))]


def _resamples(rng: np.random.Generator, n: int) -> NDArray[np.intp]:
    return np.asarray(rng.integers(0, n, size=(DRAWS, n)))
