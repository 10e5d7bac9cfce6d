"""Grid files: valid ones, changed in their structure and in their text, planned by a dry run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import nasty
from tests.fuzz.grid_values import AXES, RAW, SCALARS, SCENARIO, SETTINGS
from tests.fuzz.harness import Case, Outcome

NOT_FINITE = re.compile(r"[+-]?\.?(nan|inf|infinity)", re.IGNORECASE)


def case(seed: int) -> Case:
    """Return a dry run of a grid that is valid or nearly so."""
    draw = Random(seed)
    text = _text(draw)

    def prepare(place: Path) -> None:
        (place / "grid.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))

    def check(place: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
        if outcomes[0].code == 0:
            yield from _accepted(text)

    return Case([["run", "--grid", "grid.yaml", "--dry-run", "--out", "out"]], prepare, check, own=())


def _text(draw: Random) -> str:
    grid = _valid(draw)
    raws: list[str] = []
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        draw.choice(CHANGES)(grid, draw, raws)
    text = yaml.safe_dump(
        grid, sort_keys=False, allow_unicode=draw.random() < 0.5, default_flow_style=draw.choice((False, None))
    )
    for number, raw in enumerate(raws):
        text = re.sub(rf"'?@{number}@'?", lambda found, raw=raw: raw, text)
    return draw.choice(EDITS)(text, draw) if draw.random() < 0.35 else text


def _valid(draw: Random) -> dict[Any, Any]:
    grid: dict[Any, Any] = {
        "title": "t",
        "datasets": ["photos"],
        "models": ["tiny"],
        "defenses": ["none"],
        "attacks": ["constant_image"],
    }
    if draw.random() < 0.005:  # its evaluations are timed, which takes a second
        grid |= {"attacks": ["dlg"], "evaluations": 1}
    if draw.random() < 0.5:
        grid["victims"] = 1
    if draw.random() < 0.4:
        grid["scenarios"] = [_scenario(draw, 0.0) for _ in range(draw.randint(1, 2))]
    if draw.random() < 0.25:
        grid["parts"] = [{"defenses": ["none"]}, {"scenarios": [{"timesteps": 100}], "trials": 2}][: draw.randint(1, 2)]
    if draw.random() < 0.25:
        grid["set"] = {"defense.clipping.clip": 2.0}
    return grid


def _scenario(draw: Random, wild: float) -> dict[Any, Any]:
    names = draw.sample(sorted(SCENARIO), draw.randint(0, 4))
    values = {name: draw.choice(SCENARIO[name] if draw.random() < wild else SCENARIO[name][:2]) for name in names}
    return {"timesteps": 200, **values}


def _value(draw: Random, raws: list[str]) -> Any:
    """Return a value of a random type; raw YAML is put in the text later, in the place of a mark."""
    roll = draw.random()
    if roll < 0.5:
        raws.append(draw.choice(RAW))
        return f"@{len(raws) - 1}@"
    if roll < 0.7:
        return "".join(c for c in nasty.text(draw) if not 0xD800 <= ord(c) < 0xE000)
    if roll < 0.8:
        return nasty.number(draw)
    return draw.choice(
        (None, True, 1, -1, 1.5, [], {}, [[]], [None], ["a", 1], {"a": {"b": []}}, float("nan"), float("-inf"), b"x")
    )


def _any_value(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    """Replace a value anywhere."""
    holders = list(_holders(grid))
    holder = draw.choice(holders)
    key = draw.choice(sorted(holder, key=str)) if isinstance(holder, dict) else draw.randrange(len(holder))
    holder[key] = _value(draw, raws)


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _holders(item)


def _axis(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    axis = draw.choice(sorted(AXES))
    names = draw.choices(AXES[axis], k=draw.choice((0, 1, 1, 2, 3)))
    grid[axis] = draw.choice((*[names] * 8, ",".join(names), dict.fromkeys(names)))


def _scalar(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    name = draw.choice(sorted(SCALARS))
    grid[name] = draw.choice(SCALARS[name])


def _scenarios(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    grid["scenarios"] = [_scenario(draw, 0.6) for _ in range(draw.choice((1, 1, 2, 40)))]
    if draw.random() < 0.3:
        grid["scenarios"][0][draw.choice((*SCENARIO, "x", 5, None))] = _value(draw, raws)


def _parts(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    fields = {**AXES, **SCALARS, "scenarios": ([{"timesteps": 5}], [{}], [{"clients": 2}]), "parts": ([],), "x": (1,)}
    part = {name: draw.choice(values) for name, values in draw.sample(sorted(fields.items()), draw.randint(0, 3))}
    part = {name: [value] if name in AXES else value for name, value in part.items()}
    if draw.random() < 0.3:
        part[draw.choice(sorted(fields))] = _value(draw, raws)
    grid["parts"] = [part] * draw.choice((1, 1, 2, 40))


def _set(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    grid["set"] = {
        draw.choice(SETTINGS): draw.choice((1, 0, -1, "nan", 1e300, _value(draw, raws))) for _ in range(draw.randint(1, 3))
    }


def _keys(grid: dict[Any, Any], draw: Random, raws: list[str]) -> None:
    """Drop a key, add one, or change one's type."""
    key = draw.choice(sorted(grid, key=str))
    value = grid.pop(key)
    if draw.random() < 0.6:
        grid[draw.choice(("x", "Title", key + " ", 5, None, True, 1.5, "attack", f"{key}s", "é", "x" * 500))] = value


CHANGES: tuple[Callable[[dict[Any, Any], Random, list[str]], None], ...] = (
    _any_value, _any_value, _any_value, _axis, _axis, _scalar, _scalar, _scenarios, _parts, _set, _keys,
)  # fmt: skip


def _repeat_line(text: str, draw: Random) -> str:
    lines = text.split("\n")
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return "\n".join(lines)


def _repeat_key(text: str, draw: Random) -> str:
    key = draw.choice(("victims", '"victims"', "title", "!!str title", "? title\n", "attacks"))
    return f"{text}{key}: 2\n" + ("victims: 2\n" if draw.random() < 0.5 else "")


def _insert(text: str, draw: Random) -> str:
    at = draw.randrange(len(text) + 1)
    return (
        text[:at]
        + draw.choice((*"[]{}:,-'\"#&*!|>%@`\t\0\x85\u2028", "\ud800", "---\n", "...\n", "%YAML 9.9\n", "*a", "&a ", "!x "))
        + text[at:]
    )


def _cut(text: str, draw: Random) -> str:
    return text[: draw.randrange(len(text) + 1)]


def _whole(text: str, draw: Random) -> str:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 20))
    merge = "base: &base {victims: 1}\n<<: *base\n"
    return draw.choice(
        (
            bomb + text,
            merge + text,
            f"- {text}",
            "",
            "5",
            "[]",
            "\ufeff" + text,
            text * 2,
            f"---\n{text}---\n{text}",
            "[" * 5000,
        )
    )


EDITS: tuple[Callable[[str, Random], str], ...] = (_repeat_line, _repeat_key, _repeat_key, _insert, _insert, _cut, _whole)


def _accepted(text: str) -> Iterator[tuple[str, str]]:
    """Yield what an accepted grid must not hold."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if key := next(_repeated(node), None):
        yield "a grid that gives a key twice was accepted", key
    if value := next(_not_finite(yaml.safe_load(text)), None):
        yield "a grid with a number that is not finite was accepted", value


def _repeated(node: Any) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        yield from (key for key in keys if keys.count(key) > 1)
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
    for part in parts:
        yield from _repeated(part)


def _not_finite(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from () if key == "title" else _not_finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _not_finite(item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield repr(value)
    elif isinstance(value, str) and any(NOT_FINITE.fullmatch(part) for part in re.split(r"[\[\]=,]", value)):
        yield value
