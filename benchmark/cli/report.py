"""Rebuild the tables and figures of a run directory from its records."""

from __future__ import annotations

import argparse

from benchmark.base.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument("run_dir", type=user_path, metavar="RUN_DIR")


def execute(options: argparse.Namespace) -> int:
    """Write and print the leaderboard."""
    from benchmark.experiment.store import Store
    from benchmark.report import tables
    from benchmark.report.build import build

    results, table = build(Store(options.run_dir))
    tables.show(results, table)
    print(f"Tables and figures: {options.run_dir}")
    return 0
