"""What a run shows while it runs: a live bar on a terminal, one line per cell elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmark.base.events import Step
from benchmark.base.paths import printable
from benchmark.experiment.cell import Cell
from benchmark.experiment.store import Record


class Display(ABC):
    """Receives every event of a run. A context that lasts as long as the run."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @abstractmethod
    def begin(self, cell: Cell) -> None:
        """Show that a cell starts."""

    @abstractmethod
    def step(self, cell: Cell, step: Step) -> None:
        """Show that the attack of a running cell has spent `step.count` evaluations."""

    @abstractmethod
    def end(self, cell: Cell, record: Record) -> None:
        """Show that a cell is finished and saved."""


class Silent(Display):
    """Shows nothing."""

    def begin(self, cell: Cell) -> None:
        """See `Display.begin`."""

    def step(self, cell: Cell, step: Step) -> None:
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
    """A live bar: finished cells, one running cell with its matching loss, and the time left.

    The time left is an estimate from the evaluations that are planned but not yet spent, at the pace so far.
    """

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self.console = console
        self.planned = sum(_planned(cell) for cell in cells)
        self.finished = 0
        self.running: dict[Cell, int] = {}
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
        self.running[cell] = 0
        self._show()

    def step(self, cell: Cell, step: Step) -> None:
        """See `Display.step`."""
        self.running[cell] += step.count
        self.progress.update(self.task, left=self._left())
        if cell is next(iter(self.running)):
            self.progress.update(self.task, loss=f"matching loss {step.loss:.3g}")

    def end(self, cell: Cell, record: Record) -> None:
        """See `Display.end`. A cell that spent less than its budget, such as a skipped one, leaves nothing open."""
        self.running.pop(cell, None)
        self.finished += _planned(cell)
        self._show()
        self.progress.update(self.task, advance=1, left=self._left())
        self.console.print(f"{cell.name}: {_outcome(record)}", style="dim", highlight=False, markup=False)

    def _show(self) -> None:
        """Name the cell that has run longest, and count the others."""
        first, *others = [cell.name for cell in self.running] or [""]
        more = f" (and {len(others)} more)" if others else ""
        self.progress.update(self.task, description=f"{first}{more}", loss="")

    def _left(self) -> str:
        spent = self.finished + sum(self.running.values())
        if not spent:
            return ""
        seconds = max(0.0, (time.monotonic() - self.started) / spent * (self.planned - spent))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def choose(name: str, cells: Sequence[Cell]) -> Display:
    """Return the display of that name. `auto` is the bar on a terminal and plain lines elsewhere."""
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
