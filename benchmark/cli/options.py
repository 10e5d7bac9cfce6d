"""Options that several verbs share."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from benchmark.base.errors import UserError
from benchmark.base.paths import user_path

if TYPE_CHECKING:
    from benchmark.experiment.grid import Grid

AXES = ("attacks", "defenses", "datasets", "models")


def add_include(parser: argparse.ArgumentParser) -> None:
    """Add `--include DIR`, which may be given several times."""
    parser.add_argument(
        "--include", metavar="DIR", type=user_path, action="append", default=[], help="a folder of plugins of your own"
    )


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cells there are: the grid, its axes, hyper-parameters, plugins and the device."""
    add = parser.add_argument
    add("--grid", nargs="?", const="default", default="default", metavar="NAME|FILE.yaml", help="default: default")
    for axis in AXES:
        add(f"--{axis}", metavar="A,B[FIELD=VALUE]", help=f"replaces the grid's {axis}")
    add("--set", action="append", default=[], metavar="attack.NAME.FIELD=VALUE", help="set a hyper-parameter")
    add("--device", default="auto", metavar="auto|cpu|cuda[:i]")
    add_include(parser)


def override(grid: Grid, options: argparse.Namespace) -> Grid:
    """Return the grid with the values of the command line.

    Raises:
        UserError: a list or a `--set` that cannot be read, a number below 1.
    """
    from benchmark.base.spec import split

    changes: dict[str, object] = {axis: tuple(split(text)) for axis in AXES if (text := getattr(options, axis)) is not None}
    changes |= {name: value for name in ("victims", "trials") if (value := getattr(options, name, None)) is not None}
    settings = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set '{text}' should read like attack.NAME.FIELD=VALUE")
        settings[key.strip()] = value.strip()
    parts = tuple({key: value for key, value in part.items() if key not in changes} for part in grid.parts)
    try:
        return dataclasses.replace(grid, set={**grid.set, **settings}, parts=parts, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"--{error}") from error
