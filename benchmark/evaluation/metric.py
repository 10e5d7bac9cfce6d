"""What a metric is: how it is measured, summarised and shown. `metrics.METRICS` lists them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


class Level(StrEnum):
    """What a metric gives one value for: an image, an attack under a defense, or a defense."""

    IMAGE = "image"
    CELL = "cell"
    DEFENSE = "defense"


class Direction(StrEnum):
    """Which values are better, as the arrow of a heading: for the attack, and at `Level.DEFENSE` for the defense."""

    HIGHER = "↑"
    LOWER = "↓"


class Room(IntEnum):
    """Characters that a number gets on the terminal, where a row has 80."""

    NONE = 0
    NUMBER = 7
    INTERVAL = 20


@dataclass(frozen=True)
class Shown:
    """How tables for readers show a number of the leaderboard.

    Attributes:
        header: heads the column.
        column: the number's column in `leaderboard.csv`.
        form: the number's format specification.
        interval: columns of the bounds of its 95% interval.
        paper: whether the LaTeX table has it, as the Markdown table always does.
        room: what the terminal shows of it.
    """

    header: str
    column: str
    form: str
    interval: tuple[str, str] | None = None
    paper: bool = True
    room: Room = Room.NONE


def _nothing_missing() -> None:
    return None


@dataclass(frozen=True)
class Measure:
    """How the pictures of an image are measured. The values are a column of `samples.parquet`.

    Attributes:
        title: names the metric in sentences.
        of: maps original and reconstruction, each (C, H, W) float32 in [-1, 1], to the value.
        bounds: least and largest value; a file with others is damaged.
        missing: returns why this machine cannot measure it, None where it can. `of` returns None where it cannot.
    """

    title: str
    of: Callable[[Tensor, Tensor], float | None]
    bounds: tuple[float, float] = (-inf, inf)
    missing: Callable[[], str | None] = _nothing_missing


@dataclass(frozen=True)
class Group:
    """The cells of a row of the leaderboard and their images.

    Attributes:
        cells: a row per trial with `status`, `n_total`, `seconds`, `victims` and the defense's epsilons.
        samples: a row per judged image, with `gain`: its PSNR over the floor's, NaN without a floor. May have no row and then
            no column.
    """

    cells: pd.DataFrame
    samples: pd.DataFrame

    @property
    def ok(self) -> pd.DataFrame:
        """The images that did not diverge."""
        return self.samples[self.samples.status == "ok"] if len(self.samples) else self.samples


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One thing that the bench measures.

    Attributes:
        name: names it in `report --measure` and, with a `measure`, in `samples.parquet`.
        level: what it gives one value for.
        better: which values are better.
        columns: what it adds to `leaderboard.csv`.
        summarise: returns the values of `columns` for a row of the leaderboard. At `Level.IMAGE` there is an image that did
            not diverge.
        shown: what tables for readers show of it.
        measure: how it is measured from an image's pictures, None where the judge or the record says it.
        chosen: whether `strongest` works it out for the attack that it chooses.
    """

    name: str
    level: Level
    better: Direction
    columns: tuple[str, ...]
    summarise: Callable[[Group], Sequence[float]]
    shown: tuple[Shown, ...] = ()
    measure: Measure | None = None
    chosen: bool = False

    @property
    def in_strongest(self) -> bool:
        """Whether a `strongest` row has it: what the choice is made by, and what holds under any attack."""
        return self.chosen or self.level is Level.DEFENSE
