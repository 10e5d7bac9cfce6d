"""Grids, which say what to run. They are read from YAML, and the type and range of every value are checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, get_type_hints

from benchmark.base import config
from benchmark.base.errors import UserError, shown, unknown
from benchmark.base.parsing import parse_yaml, read_text
from benchmark.base.paths import user_path
from benchmark.base.ranges import Count, Range, check_fields
from benchmark.scenario import Scenario

ORACLE = "oracle"
"""The name under which the oracle, the built-in ceiling, stands among the attacks."""


GRID_SCHEMA = 1
"""Version of the format of a grid; see SCHEMAS.md. Raise it when a key is removed or changes its meaning."""

PART_FIELDS = frozenset({"datasets", "models", "defenses", "attacks", "scenarios", "victims", "trials", "evaluations"})
"""Fields of a grid that its parts may override."""


@dataclass(frozen=True)
class Grid:
    """The axes of a grid, and the values that all its cells share.

    Attributes:
        title: heading of tables and figures.
        datasets: names of data sets, including `folder:PATH`.
        models: presets, shipped checkpoints, directories or hub ids, with their prior in brackets.
        defenses: names of defenses, with parameters in brackets. `+` stacks several defenses.
        attacks: names of attacks. All controls and the oracle are added automatically.
        scenarios: the clients' practices.
        victims: number of rounds per trial. All clients of the scenario train in each round.
        trials: number of trials. Each one draws other victims.
        seed: root of all random streams.
        evaluations: budget of every attack that has one, None for each attack's default.
        success_db: PSNR in dB from which an image counts as recovered.
        set: hyper-parameters as `attack.NAME.FIELD: VALUE`, also for `defense` and `dataset`.
        parts: one mapping per part. Each part overrides fields of the grid that are in `PART_FIELDS`, and its axes are crossed
            separately. Empty if all axes are crossed.
        schema: version of the format of the grid.
    """

    title: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    scenarios: tuple[Scenario, ...] = (Scenario(),)
    victims: Count = 4
    trials: Count = 1
    seed: int = 0
    evaluations: Count | None = None
    success_db: Annotated[float, Range(-1000, 1000)] = 30.0
    set: Mapping[str, object] = field(default_factory=dict)
    parts: tuple[Mapping[str, object], ...] = ()
    schema: Annotated[int, Range(GRID_SCHEMA, GRID_SCHEMA)] = GRID_SCHEMA

    def __post_init__(self) -> None:
        if self.schema != GRID_SCHEMA:
            raise ValueError(f"schema must be {GRID_SCHEMA}, the only one that this version reads, not {shown(self.schema)}")
        check_fields(self)
        for axis in ("datasets", "models", "defenses", "attacks", "scenarios"):
            if not getattr(self, axis):
                raise ValueError(f"{axis} is empty")
        for part in self.parts:
            if unexpected := sorted(set(map(str, part)) - PART_FIELDS):
                raise ValueError(f"a part has no {shown(unexpected[0])}, only {', '.join(sorted(PART_FIELDS))}")

    def each_part(self) -> list[Grid]:
        """Return one grid without parts per part, or the grid itself if it has no parts.

        Raises:
            UserError: a value of a part has a wrong type or lies outside its range.
        """
        whole = dataclasses.replace(self, parts=())
        return [whole._with_overrides(part, f"part {number}") for number, part in enumerate(self.parts, 1)] or [whole]

    def _with_overrides(self, part: Mapping[str, object], name: str) -> Grid:
        hints = get_type_hints(Grid)
        values = {key: config.coerce(value, hints[key], f"{name}: {key}") for key, value in part.items()}
        try:
            return dataclasses.replace(self, **values)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error


def packaged_grids() -> dict[str, str]:
    """Return the YAML text of every grid in the package, by name."""
    found = {Path(f.name).stem: f for f in files("benchmark.grids").iterdir() if f.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def packaged_titles() -> dict[str, str]:
    """Return the title of every grid in the package, by name."""
    return {name: str(parse_yaml(text, f"grid {name}")["title"]) for name, text in packaged_grids().items()}


def read_grid(name: str) -> Grid:
    """Read a grid.

    Args:
        name: name of a grid in the package, or path of a YAML file.

    Raises:
        UserError: there is no such grid, or it is not valid.
    """
    if name.endswith((".yaml", ".yml")):
        text = read_text(user_path(name), "grid")
    elif name in packaged_grids():
        text = packaged_grids()[name]
    else:
        raise unknown("grid", name, packaged_grids())
    values = parse_yaml(text, f"grid {name}")
    if not isinstance(values, dict):
        raise UserError(f"grid {name} should be a mapping of keys such as 'attacks' and 'defenses'")
    return config.build(Grid, values, f"grid {name}")
