"""Rebuild the tables and figures of a run directory from its records."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmark.base.paths import user_path

if TYPE_CHECKING:
    from benchmark.experiment.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("run_dir", type=user_path, metavar="RUN_DIR")
    parser.add_argument("--measure", metavar="METRIC", help="first measure the stored images by this metric, e.g. lpips")


def execute(options: argparse.Namespace) -> int:
    """Write the tables and figures, print the leaderboard, and return 0."""
    from benchmark.experiment.store import Store
    from benchmark.report import tables
    from benchmark.report.build import build_report

    store = Store(options.run_dir)
    if options.measure is not None:
        _measure(store, options.measure)
    results, table = build_report(store)
    tables.print_tables(results, table)
    print(f"Tables and figures: {options.run_dir}")
    return 0


def _measure(store: Store, name: str) -> None:
    from benchmark.base.machine import configure_torch
    from benchmark.report.measure import measure

    configure_torch()
    print(f"Measured {name} of {measure(store, name)} images")
