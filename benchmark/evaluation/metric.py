"""The description of a metric: how it is measured, summarised and shown. `metrics.METRICS` lists all metrics."""

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
    """The unit for which a metric gives one value: an image, a cell (an attack under a defense), or a defense."""

    IMAGE = "image"
    CELL = "cell"
    DEFENSE = "defense"


class Direction(StrEnum):
    """Which values are better, written as the arrow of a heading.

    Better means better for the attack, except at `Level.DEFENSE`, where it means better for the defense.
    """

    HIGHER = "↑"
    LOWER = "↓"


class ColumnWidth(IntEnum):
    """Width of a column on the terminal in characters; a row has 80.

    `NONE` leaves the column out, `NUMBER` shows the number alone, and `INTERVAL` shows the number with its interval.
    """

    NONE = 0
    NUMBER = 7
    INTERVAL = 20


@dataclass(frozen=True)
class TableColumn:
    """A column of the tables for readers, which shows one number of the leaderboard.

    Attributes:
        header: heading of the column.
        column: the column in `leaderboard.csv` that holds the number.
        form: format specification of the number.
        interval: columns in `leaderboard.csv` with the bounds of the number's 95% interval, None if it has none.
        paper: whether the LaTeX table shows the column. The Markdown table always shows it.
        room: width of the column on the terminal.
    """

    header: str
    column: str
    form: str
    interval: tuple[str, str] | None = None
    paper: bool = True
    width: ColumnWidth = ColumnWidth.NONE


def _nothing_missing() -> None:
    return None


@dataclass(frozen=True)
class Measure:
    """A measurement of a reconstruction against its original. Its values are a column of `samples.parquet`.

    Attributes:
        title: name of the metric in sentences.
        of: maps original and reconstruction, each (C, H, W) float32 in [-1, 1], to the value, or to None if this machine
            cannot measure it.
        bounds: smallest and largest possible value. A file with other values is damaged.
        missing: returns why this machine cannot measure it, None if it can.
    """

    title: str
    of: Callable[[Tensor, Tensor], float | None]
    bounds: tuple[float, float] = (-inf, inf)
    missing: Callable[[], str | None] = _nothing_missing


@dataclass(frozen=True)
class Group:
    """The cells of one row of the leaderboard, and their images.

    Attributes:
        cells: one row per trial with `status`, `n_total`, `seconds`, `victims`, `epsilon_round`, `epsilon_total` and `delta`.
        samples: one row per judged image. The column `gain` is its PSNR minus the floor's PSNR, NaN without a floor. If there
            are no rows, there may be no columns either.
    """

    cells: pd.DataFrame
    samples: pd.DataFrame

    @property
    def ok(self) -> pd.DataFrame:
        """Return the images that did not diverge."""
        return self.samples[self.samples.status == "ok"] if len(self.samples) else self.samples


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of the benchmark.

    Attributes:
        name: name in `report --measure`; with a `measure` also the name of its column in `samples.parquet`.
        level: the unit for which the metric gives one value.
        better: which values are better.
        columns: the columns that the metric adds to `leaderboard.csv`.
        summarise: returns the values of `columns` for one row of the leaderboard. At `Level.IMAGE` it is called only if at
            least one image did not diverge.
        shown: the columns that the metric adds to the tables for readers.
        measure: how an image is measured, None if the values come from the judge or from the cell's record.
        chosen: whether the `strongest` rows compute it for the attack that they choose.
    """

    name: str
    level: Level
    better: Direction
    columns: tuple[str, ...]
    summarise: Callable[[Group], Sequence[float]]
    table_columns: tuple[TableColumn, ...] = ()
    measure: Measure | None = None
    for_strongest: bool = False

    @property
    def in_strongest(self) -> bool:
        """Return whether the `strongest` rows have it: computed for the chosen attack, or a property of the defense alone."""
        return self.for_strongest or self.level is Level.DEFENSE
