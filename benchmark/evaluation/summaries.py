"""Functions for `Metric.summarise`. They compute the numbers of a leaderboard row from its cells and images."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import numpy as np

from benchmark.evaluation.metric import Group
from benchmark.evaluation.statistics import median_interval, rate_interval, rate_limit


def mean(name: str) -> Callable[[Group], tuple[float]]:
    """Return a function that computes the mean of a measurement over the images that have a value and did not diverge."""
    return lambda group: (float(group.ok[name].mean()),)


def psnr(group: Group) -> tuple[float, ...]:
    """Return median, mean and interval of the PSNR, then median and interval of the gain over the floor."""
    ok = group.ok
    paired = ok.dropna(subset=["gain"])
    median, low, high = _median(ok.psnr, ok.source)
    return median, float(ok.psnr.mean()), low, high, *_median(paired.gain, paired.source)


def success(group: Group) -> tuple[float, float, float]:
    """Return the share of recovered images among all images, and its interval.

    An image without a reconstruction counts as not recovered. The share is NaN if all cells were skipped.
    """
    if group.samples.empty:
        return (nan if (group.cells.status == "skipped").all() else 0.0), nan, nan
    rate = float(group.samples.success.sum()) / int(group.cells.n_total.sum())
    return rate, *rate_interval(rate, group.samples.source.nunique())


def timestep_accuracy(group: Group) -> tuple[float]:
    """Return the share of exact timesteps among the timesteps that the attack estimated."""
    return (float((group.ok.timestep_error.dropna() == 0).mean()),)


def acceptance(group: Group) -> tuple[float, float, float]:
    """Return how many images the attack accepted, how many of these are not recovered, and the upper limit of that share.

    All three are NaN if the attack predicts no PSNR. The limit alone is NaN if it accepted no image.
    """
    judged = group.ok.dropna(subset=["accepted"])
    if judged.empty:
        return nan, nan, nan
    accepted = judged[judged.accepted == 1]
    false = int((~accepted.success.astype(bool)).sum())
    return float(len(accepted)), float(false), rate_limit(false, len(accepted))


def privacy(group: Group) -> tuple[float, ...]:
    """Return the defense's epsilon of one round, its total epsilon, and its delta."""
    first = group.cells.iloc[0]
    return tuple(float(first[name]) for name in ("epsilon_round", "epsilon_total", "delta"))


def seconds_per_victim(group: Group) -> tuple[float]:
    """Return the mean time of the attack per victim in seconds."""
    cells = group.cells
    return (nan if group.samples.empty else float(cells.seconds.sum() / cells.victims[cells.seconds.notna()].sum()),)


def evaluations(group: Group) -> tuple[float]:
    """Return the mean number of evaluations that the attack spent per victim."""
    return (nan if group.samples.empty else float(group.samples.evaluations.mean()),)


def _median(values: Any, sources: Any) -> tuple[float, float, float]:
    """Return the median and its interval, NaN without values."""
    return (float(np.median(values)), *median_interval(values.tolist(), sources.tolist())) if len(values) else (nan, nan, nan)
