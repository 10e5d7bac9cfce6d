"""Run a grid and write a leaderboard. The same command again resumes."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.base.errors import UserError, remark, say
from benchmark.base.interrupts import exit_code, record_interrupts
from benchmark.base.paths import printable, user_path
from benchmark.cli.options import add_grid, override
from benchmark.cli.output import discard_stdout

if TYPE_CHECKING:
    from benchmark.experiment.cell import Cell
    from benchmark.experiment.scene import Scene
    from benchmark.experiment.session import Session
    from benchmark.experiment.store import Store
    from benchmark.scenario import Scenario


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    add = parser.add_argument
    add_grid(parser)
    add("--victims", type=int, metavar="N", help="rounds of the clients in each trial")
    add("--trials", type=int, metavar="N", help="number of draws of victims")
    add("--out", type=user_path, metavar="DIR", help="the run directory; default: results/runs/NAME")
    add("--workers", type=int, default=1, metavar="N", help="processes that run cells side by side; default: 1")
    add("--cell-timeout", type=float, metavar="S", help="give up a cell after S seconds")
    add("--dry-run", action="store_true", help="print the cells and the estimated time, and run nothing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="run finished cells again")
    again.add_argument("--only-failed", action="store_true", help="run only cells that have failed before")
    add("--display", choices=("auto", "rich", "plain", "none"), default="auto", metavar="auto|rich|plain|none")


def execute(options: argparse.Namespace) -> int:
    """Plan the cells, run the missing ones and report. Return 0 if all cells are ok, diverged or skipped, else 1.

    If a signal or a lost output ends the run early, report the finished cells.
    """
    from benchmark.base.machine import configure_torch, device_name
    from benchmark.experiment.display import choose
    from benchmark.experiment.grid import read_grid
    from benchmark.experiment.job import Job
    from benchmark.experiment.session import Session
    from benchmark.experiment.store import Store

    configure_torch()
    job = Job(override(read_grid(options.grid), options), options.include, device_name(options.device))
    session = Session(job, Store(options.out or Path("results", "runs", Path(options.grid).stem)))
    executor = session.executor(options.workers, options.cell_timeout)
    missing = session.cells if options.force else session.failed() if options.only_failed else session.unfinished()
    session.check(missing)
    for text in dict.fromkeys(text for cell in session.cells for text in cell.remarks):
        remark(text)
    if options.dry_run:
        return _dry_run(session, missing)
    with session.store.writing(), record_interrupts(patient=False) as signals:
        saved = session.run(missing, executor, choose(options.display, missing))
        ended = _run(saved, signals)
        return _report(session.store, options) if ended is None else _report_early(ended, session.store)


@dataclasses.dataclass(frozen=True)
class _Ended:
    """Why a run ended before its last cell, and its exit code."""

    reason: str
    code: int


def _run(saved: Generator[Cell], signals: Sequence[int]) -> _Ended | None:
    """Run every cell. Return why the run ended early, None where it did not."""
    try:
        with closing(saved):
            for _ in saved:
                if signals:
                    break
    except KeyboardInterrupt:
        return _Ended("Interrupted", exit_code(signals[0] if signals else signal.SIGINT))
    except OSError as error:  # from the display: an error of the store is a `UserError`
        discard_stdout()
        return _Ended(f"The output is lost ({error.strerror})", 1)
    return _Ended("Interrupted", exit_code(signals[0])) if signals else None


def _report_early(ended: _Ended, store: Store) -> int:
    """Write the tables of the finished cells, and say how to continue."""
    from benchmark.report.build import build_report

    try:
        build_report(store)
        tables = ", its tables are written"
    except (UserError, MemoryError) as error:
        tables = f", its tables are not written ({error})"
    say("")
    say(f"{ended.reason}: every finished cell is kept in {store.path}{tables}; the same command goes on from there.")
    return ended.code


def _report(store: Store, options: argparse.Namespace) -> int:
    from benchmark.experiment.store import Status
    from benchmark.report import tables
    from benchmark.report.build import build_report

    results, table = build_report(store)
    if options.display != "none":
        tables.print_tables(results, table)
        print(f"Tables and figures: {store.path}")
    return 0 if all(Status(status).final for status in results.cells.status) else 1


def _dry_run(session: Session, missing: Sequence[Cell]) -> int:
    """Print every cell with its number of evaluations, and how long the attacks take on one worker."""
    from benchmark.experiment.scene import Scene

    waiting = {cell.identity for cell in missing}
    scenes = [Scene(cell, session.cache) for cell in session.cells]
    print(printable(session.job.grid.title))
    for scene in scenes:
        cell = scene.cell
        state = "will be skipped" if cell.missing else f"{_updates(scene)} x {cell.budget} evaluations"
        print(f"  {cell.name}: {state if cell.identity in waiting else 'done'}")
    attacked = [scene for scene in scenes if scene.cell.identity in waiting and not scene.cell.missing]
    costs = zip(attacked, _costs(attacked), strict=True)
    seconds = sum(scene.cell.budget * _updates(scene) * cost for scene, cost in costs)
    print(
        f"{len(missing)} of {len(scenes)} cells to run; their attacks take about {int(seconds) // 60} min "
        f"{int(seconds) % 60} s here with one worker, by the measured cost of an evaluation."
    )
    return 0


def _updates(scene: Scene) -> int:
    """Return how many updates the attack gets."""
    return scene.cell.victims * scene.updates_per_round


def _costs(scenes: Sequence[Scene]) -> list[float]:
    """Return the seconds of one evaluation of one update for each scene, measured once per model and practice."""
    from benchmark.experiment.scene import Scene

    measured: dict[tuple[str, Scenario], float] = {}
    keys = [(scene.cell.model.label, scene.practice) for scene in scenes]
    for key, scene in zip(keys, scenes, strict=True):
        if scene.cell.budget and key not in measured:
            measured[key] = _cost(Scene(scene.cell, scene.cache))  # its tensors are dropped again
    return [measured.get(key, 0.0) for key in keys]


def _cost(scene: Scene) -> float:
    from benchmark.matching.engine import seconds_per_evaluation

    device = scene.cell.device
    known = [
        dataclasses.replace(observation, timesteps=victim.timesteps.to(device), noise=victim.noise.to(device))
        for victim, observation in zip(scene.victims, scene.observations, strict=True)
    ]
    return seconds_per_evaluation(known)
