"""What attacks were expected to reach before they ran, and how often that was right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from benchmark.experiment.store import Status
from benchmark.outlook import Prediction

EXPECTED = ("expected", "expected_reason")
"""The columns of the leaderboard that say what was expected, and why."""


def expected(cells: pd.DataFrame) -> dict[str, str]:
    """Return the values of `EXPECTED` for the trials of one row of the leaderboard; empty if nothing was expected."""
    first = cells.iloc[0]
    if (cells.expected == first.expected).all():
        return {name: str(first[name]) for name in EXPECTED}
    return dict(zip(EXPECTED, (str(Prediction.UNKNOWN), "the trials differ"), strict=True))


@dataclass(frozen=True)
class Score:
    """How often expectations were right.

    Attributes:
        recovered: attacks expected to recover the images.
        recovered_right: how many of them did.
        lost: attacks expected not to recover the images.
        lost_right: how many of them did not.
        unknown: attacks of which nothing was expected.
        unknown_recovered: how many of them recovered the images.
    """

    recovered: int
    recovered_right: int
    lost: int
    lost_right: int
    unknown: int
    unknown_recovered: int


def score(outcomes: Iterable[tuple[str, bool]]) -> Score:
    """Return how often expectations were right, given a `Prediction` and whether the images were recovered, for each attack."""
    by_expectation: dict[str, list[bool]] = {name: [] for name in Prediction}
    for name, was_recovered in outcomes:
        by_expectation[name].append(was_recovered)
    found, lost, rest = (by_expectation[name] for name in (Prediction.RECOVERED, Prediction.NOT_RECOVERED, Prediction.UNKNOWN))
    return Score(len(found), sum(found), len(lost), len(lost) - sum(lost), len(rest), sum(rest))


def outcomes(table: pd.DataFrame, success_db: float) -> list[tuple[str, bool]]:
    """Return expectation and outcome of each row of the leaderboard that has both.

    An attack recovered the images if their median PSNR is at least `success_db`. If it lost half of them, it did not.
    """
    judged = table[(table.expected != "") & table.status.isin([Status.OK, Status.DIVERGED])]
    recovered = (judged.psnr_median >= success_db) & (2 * judged.n_ok > judged.n_total)
    return list(zip(judged.expected, recovered.tolist(), strict=True))


def notes_on_expectations(table: pd.DataFrame, success_db: float) -> list[str]:
    """Return one sentence on how often the expectations were right; none if nothing was expected."""
    counted = score(outcomes(table, success_db))
    if not counted.recovered + counted.lost:
        return []
    return [
        "Expected before the search, by what the updates can reveal (median PSNR of at least "
        f"{success_db:g} dB): recovered for {counted.recovered} attacks, of which {counted.recovered_right} did it; "
        f"not recovered for {counted.lost}, of which {counted.lost_right} did not; "
        f"unknown for {counted.unknown}, of which {counted.unknown_recovered} did it."
    ]
