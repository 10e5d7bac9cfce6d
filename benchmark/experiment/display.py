"""What a run shows while it runs: a live bar on a terminal, one line per cell elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmark.base.events import Step
from benchmark.base.paths import printable
from benchmark.experiment.cell import Cell
from benchmark.experiment.store import Record


class Display(ABC):
    """Told of every event of a run; a context that lasts as long as the run."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @abstractmethod
    def begin(self, cell: Cell) -> None:
        """A cell starts."""

    @abstractmethod
    def step(self, step: Step) -> None:
        """The running attack spent an evaluation."""

    @abstractmethod
    def end(self, cell: Cell, record: Record) -> None:
        """A cell is finished and saved."""


class Silent(Display):
    """Shows nothing."""

    def begin(self, cell: Cell) -> None:
        """See `Display.begin`."""

    def step(self, step: Step) -> None:
        """See `Display.step`."""

    def end(self, cell: Cell, record: Record) -> None:
        """See `Display.end`."""


class Plain(Silent):
    """One line per finished cell."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def end(self, cell: Cell, record: Record) -> None:
        """See `Display.end`."""
        self.done += 1
        print(printable(f"[{self.done}/{self.total}] {cell.name}: {_outcome(record)}"), flush=True)


class Bar(Display):
    """A live bar: cells done, the current cell, its matching loss and the time left.

    The time left counts evaluations, since they are what takes the time: those that are planned but not yet spent, at the
    pace so far.
    """

    def __init__(self, cells: list[Cell], console: Console) -> None:
        self.console = console
        self.planned = sum(_planned(cell) for cell in cells)
        self.spent = 0
        self.before = 0
        self.started = time.monotonic()
        self.progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            TextColumn("[dim]{task.fields[loss]}"),
            console=console,
        )
        self.task = self.progress.add_task("", total=len(cells), loss="", left="")
        self.live = Live(self.progress, console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Bar:
        self.live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.__exit__(kind, error, trace)

    def begin(self, cell: Cell) -> None:
        """See `Display.begin`."""
        self.before = self.spent
        self.progress.update(self.task, description=cell.name, loss="")

    def step(self, step: Step) -> None:
        """See `Display.step`."""
        self.spent += 1
        self.progress.update(self.task, loss=f"matching loss {step.loss:.3g}", left=self._left())

    def end(self, cell: Cell, record: Record) -> None:
        """See `Display.end`; a cell that spent less than its budget, skipped ones among them, leaves nothing open."""
        self.spent = self.before + _planned(cell)
        self.progress.update(self.task, advance=1, left=self._left())
        self.console.print(f"{cell.name}: {_outcome(record)}", style="dim", highlight=False, markup=False)

    def _left(self) -> str:
        if not self.spent:
            return ""
        seconds = (time.monotonic() - self.started) / self.spent * (self.planned - self.spent)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def choose(name: str, cells: list[Cell]) -> Display:
    """The display of that name; `auto` is the bar on a terminal and plain lines elsewhere."""
    if name == "auto":
        name = "rich" if sys.stdout.isatty() else "plain"
    if name == "rich":
        return Bar(cells, Console())
    return Plain(len(cells)) if name == "plain" else Silent()


def _planned(cell: Cell) -> int:
    return 0 if cell.missing else cell.budget * cell.victims


def _outcome(record: Record) -> str:
    took = f" in {record.seconds:.1f} s" if record.seconds else ""
    return f"{record.status}{took}" + (f" ({record.reason})" if record.reason else "")
