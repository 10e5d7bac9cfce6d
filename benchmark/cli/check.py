"""Check one plugin against the contract for all plugins."""

from __future__ import annotations

import argparse

from benchmark.cli.options import add_include


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    parser.add_argument("name", metavar="NAME", help="a plugin; for a data set with a path, e.g. folder:PATH")
    add_include(parser)


def execute(options: argparse.Namespace) -> int:
    """Print one line per check. Return 0 if all checks pass, else 1."""
    from benchmark.matching.plans import shared_plans
    from benchmark.registry import Registry
    from benchmark.registry.contract import examine

    failed = 0
    with shared_plans():
        for finding in examine(options.name, Registry(options.include)):
            failed += finding.problem is not None
            print(f"{'ok  ' if finding.problem is None else 'FAIL'}  {finding.rule}")
            if finding.problem:
                print(f"      {finding.problem}")
    return 1 if failed else 0
