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


def best_intervals(
    scores: NDArray[np.float64], others: Sequence[NDArray[np.float64]], sources: Sequence[str]
) -> list[tuple[float, float]]:
    """Bootstrap 95% intervals of medians of the best of A candidates: which one that is, is decided anew in each resample.

    Args:
        scores: (A, n), by whose median the best is chosen.
        others: (A, n) each, e.g. `scores` themselves; the interval is that of the chosen row's median.
        sources: n names; whole sources are resampled.

    Returns:
        One interval for each of `others`; NaN with fewer than two sources.
    """
    places = _groups(list(range(len(sources))), sources)
    if len(places) < 2:
        return [(float("nan"), float("nan"))] * len(others)
    medians: list[list[float]] = []
    for row in _resamples(np.random.default_rng(0), len(places)):
        drawn = np.concatenate([places[i] for i in row]).astype(int)
        best = int(np.median(scores[:, drawn], axis=1).argmax())
        medians.append([float(np.median(other[best, drawn])) for other in others])
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


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
