"""A grid: what to run, read from YAML, with every value of its type and in its range."""

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
"""The name of the bench's own ceiling among the attacks."""


PARTED = frozenset({"datasets", "models", "defenses", "attacks", "scenarios", "victims", "trials", "evaluations"})
"""Fields of a grid that its parts may have values of their own for."""


@dataclass(frozen=True)
class Grid:
    """The axes, and what all cells share.

    Attributes:
        title: what tables and figures are headed with.
        datasets: names of data sets, `folder:PATH` among them.
        models: presets, shipped checkpoints, directories or hub ids, with their prior in brackets.
        defenses: names, with parameters in brackets, stacked with `+`.
        attacks: names; every control and the oracle join by themselves.
        scenarios: the clients' practices.
        victims: rounds of the scenario's clients per trial.
        trials: draws of victims.
        seed: the root of every random stream.
        evaluations: budget of every attack that has one, else its paper's.
        success_db: PSNR from which an image counts as recovered.
        set: hyper-parameters as `attack.NAME.FIELD: VALUE`.
        parts: where not all axes are to be crossed, the values of `PARTED` that each part has in place of the grid's own.
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

    def __post_init__(self) -> None:
        check_fields(self)
        for axis in ("datasets", "models", "defenses", "attacks", "scenarios"):
            if not getattr(self, axis):
                raise ValueError(f"{axis} is empty")
        for part in self.parts:
            if strange := sorted(set(map(str, part)) - PARTED):
                raise ValueError(f"a part has no {shown(strange[0])}, only {', '.join(sorted(PARTED))}")

    def each_part(self) -> list[Grid]:
        """The grid as plain ones, each to be crossed: itself where it has no parts.

        Raises:
            UserError: a part's value is none of its field, or lies outside its range.
        """
        whole = dataclasses.replace(self, parts=())
        return [whole._with(part, f"part {number}") for number, part in enumerate(self.parts, 1)] or [whole]

    def _with(self, part: Mapping[str, object], name: str) -> Grid:
        hints = get_type_hints(Grid)
        values = {key: config.coerce(value, hints[key], f"{name}: {key}") for key, value in part.items()}
        try:
            return dataclasses.replace(self, **values)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error


def shipped() -> dict[str, str]:
    """Return the YAML text of every grid inside the package, by name."""
    found = {Path(f.name).stem: f for f in files("benchmark.grids").iterdir() if f.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def titles() -> dict[str, str]:
    """Return the title of every grid inside the package, by name."""
    return {name: str(parse_yaml(text, f"grid {name}")["title"]) for name, text in shipped().items()}


def read(name: str) -> Grid:
    """Return the grid of that name, or in that YAML file.

    Raises:
        UserError: there is none, or it is not a valid grid.
    """
    if name.endswith((".yaml", ".yml")):
        text = read_text(user_path(name), "grid")
    elif name in shipped():
        text = shipped()[name]
    else:
        raise unknown("grid", name, shipped())
    values = parse_yaml(text, f"grid {name}")
    if not isinstance(values, dict):
        raise UserError(f"grid {name} should be a mapping of keys such as 'attacks' and 'defenses'")
    return config.build(Grid, values, f"grid {name}")
