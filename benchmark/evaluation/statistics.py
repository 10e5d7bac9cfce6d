"""Confidence intervals. Crops of one photograph are not independent, so whole photographs are resampled or counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE_LEVEL = 0.95


def median_interval(values: Sequence[float], sources: Sequence[str]) -> tuple[float, float]:
    """Return the percentile bootstrap 95% interval of the median.

    Args:
        values: one value per image.
        sources: the photograph of each image; whole sources are resampled.

    Returns:
        Lower and upper bound, NaN with fewer than two sources.
    """
    groups = _by_source(values, sources)
    if len(groups) < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(0)
    draws = [np.median(np.concatenate([groups[i] for i in row])) for row in _resampled_rows(rng, len(groups))]
    low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def best_intervals(
    scores: NDArray[np.float64], others: Sequence[NDArray[np.float64]], sources: Sequence[str]
) -> list[tuple[float, float]]:
    """Return bootstrap 95% intervals of the medians of the best of A candidates. Each resample chooses the best again.

    Args:
        scores: (A, n) scores; the best candidate has the largest median.
        others: arrays of shape (A, n), for example `scores` itself. Each gets an interval of the chosen row's median.
        sources: the photograph of each of the n images; whole sources are resampled.

    Returns:
        One interval (lower, upper) per entry of `others`, NaN with fewer than two sources.
    """
    indices = _by_source(list(range(len(sources))), sources)
    if len(indices) < 2:
        return [(float("nan"), float("nan"))] * len(others)
    medians: list[list[float]] = []
    for row in _resampled_rows(np.random.default_rng(0), len(indices)):
        drawn = np.concatenate([indices[i] for i in row]).astype(int)
        best = int(np.median(scores[:, drawn], axis=1).argmax())
        medians.append([float(np.median(other[best, drawn])) for other in others])
    low, high = np.quantile(medians, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def rate_interval(rate: float, sources: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a rate, NaN if there are no sources.

    A bootstrap is not suitable: it gives [1, 1] if all images succeed, even if there are few of them.

    Args:
        rate: observed rate in [0, 1].
        sources: number of photographs, used as the number of independent observations.
    """
    if sources == 0:
        return (float("nan"), float("nan"))
    n, z = sources, float(norm.ppf((1 + CONFIDENCE_LEVEL) / 2))
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def rate_limit(events: int, trials: int) -> float:
    """Return the 95% upper limit of a rate after `events` in `trials`, NaN without trials (Clopper and Pearson 1934).

    It is one-sided: 0 of 50 means a rate of at most 5.8%.
    """
    if not trials:
        return float("nan")
    return 1.0 if events == trials else float(beta.ppf(CONFIDENCE_LEVEL, events + 1, trials - events))


def reachable_level(sources: int) -> float:
    """Return the largest coverage of any distribution-free interval of a median.

    The interval from the smallest to the largest of n values covers the median with probability 1 - 2^(1 - n).
    """
    return 1 - 2.0 ** (1 - sources)


def _by_source(values: Sequence[float], sources: Sequence[str]) -> list[NDArray[np.float64]]:
    array, names = np.asarray(values, dtype=float), np.asarray(sources)
    return [array[names == name] for name in sorted(set(sources))]


def _resampled_rows(rng: np.random.Generator, n: int) -> NDArray[np.intp]:
    return np.asarray(rng.integers(0, n, size=(BOOTSTRAP_RESAMPLES, n)))
