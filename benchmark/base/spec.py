"""Parser for the values of a grid's axis: `NAME`, `NAME:ARGUMENT`, `NAME[field=value,value,other=value]`.

Values may be stacked with `+`. Several values for one field give several values of the axis. A path may contain commas,
brackets and plus signs if it exists on the disk. It must follow a colon (`folder:PATH`) or contain a slash.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmark.base.errors import UserError, shown
from benchmark.base.paths import MAX_PATH_BYTES, user_path

MAX_VALUES = 10_000
"""Maximum number of values of one axis."""

MAX_SPECIAL = 32
"""Maximum number of special characters in a path that is looked up on the disk."""

MAX_CHARACTERS = 10_000
"""Maximum number of characters in one list of values."""

SPECIAL = re.compile(r"[\[\],+]")
"""Characters with a meaning in a value, except inside an existing path."""


@dataclass(frozen=True)
class Spec:
    """One value of an axis, e.g. `gradient_pruning[keep=0.1]`. The values of its parameters are still text."""

    name: str
    params: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{field}={value}" for field, value in self.params)
        return f"{self.name}[{inside}]" if inside else self.name


def split(text: str) -> list[str]:
    """Split a list at the commas outside of brackets and outside of existing paths.

    >>> split("none,gradient_pruning[keep=0.1,0.5],dp_sgd")
    ['none', 'gradient_pruning[keep=0.1,0.5]', 'dp_sgd']
    """
    return _split(text, ",")


def expand_stacks(texts: Iterable[str]) -> list[tuple[Spec, ...]]:
    """Parse the values of an axis whose values may be stacked.

    >>> ["+".join(map(str, stack)) for stack in expand_stacks(["clipping[clip=1,2]+dp_sgd"])]
    ['clipping[clip=1]+dp_sgd', 'clipping[clip=2]+dp_sgd']

    Raises:
        UserError: a value cannot be read, or there are more than `MAX_VALUES`.
    """
    stacks: list[tuple[Spec, ...]] = []
    for text in texts:
        members = [expand([member]) for member in _split(text, "+")]
        _check_count(len(stacks) + math.prod(map(len, members)), text)
        stacks += itertools.product(*members)
    return list(dict.fromkeys(stacks))


def expand(texts: Iterable[str]) -> list[Spec]:
    """Parse the values of one axis. Fields with several values give one `Spec` for each combination.

    >>> [str(spec) for spec in expand(["gradient_pruning[keep=0.1,0.5]"])]
    ['gradient_pruning[keep=0.1]', 'gradient_pruning[keep=0.5]']

    Raises:
        UserError: a value cannot be read, or there are more than `MAX_VALUES`.
    """
    specs: list[Spec] = []
    for text in texts:
        name, choices = _parse(text)
        pairs = [[(field, value) for value in values] for field, values in choices.items()]
        _check_count(len(specs) + math.prod(map(len, pairs)), text)
        specs += [Spec(name, combination) for combination in itertools.product(*pairs)]
    return list(dict.fromkeys(specs))


def parse_one(text: str) -> Spec:
    """Parse a single value.

    Raises:
        UserError: a field has several values, or the text cannot be read.
    """
    specs = expand([text])
    if len(specs) > 1:
        raise UserError(f"{shown(text)} gives {len(specs)} values, but only one is allowed")
    return specs[0]


def _check_count(count: int, text: str) -> None:
    if count > MAX_VALUES:
        raise UserError(f"{shown(text)} gives an axis more than {MAX_VALUES} values")


def _split(text: str, separator: str) -> list[str]:
    """Split a text at the separators outside of brackets and outside of existing paths."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{shown(text)} has more than {MAX_CHARACTERS} characters")
    parts, depth, position = [""], 0, 0
    while position < len(text):
        character = text[position]
        if depth == 0 and not parts[-1].strip() and (path := _existing_path(text[position:])):
            parts[-1] += path
            position += len(path)
            continue
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
        position += 1
    if depth != 0:
        raise UserError(f"brackets do not match in {shown(text)}")
    stripped = [part.strip() for part in parts]
    if not all(stripped):
        raise UserError(f"an empty name in {shown(text)}")
    return stripped


def _existing_path(text: str) -> str:
    """Return the longest existing path with a special character at the start of `text`, with the prefix before it.

    The prefix is white space and, if there is one, a name with a colon. Return an empty text if there is no such path.
    """
    match = re.match(r"\s*(\w+:)?", text)
    assert match is not None
    prefix, rest = match.group(), text[match.end() :]
    candidates = (path for path in _path_candidates(rest) if SPECIAL.search(path) and (match.group(1) or "/" in path))
    found = next((path for path in candidates if _exists(path)), "")
    return prefix + found if found else ""


def _path_candidates(text: str) -> Iterator[str]:
    """Yield the candidates for a path, the longest first: the whole text, and the text before each special character."""
    ends = [special.start() for special in itertools.islice(SPECIAL.finditer(text), MAX_SPECIAL + 1)]
    ends += [len(text)] if len(ends) <= MAX_SPECIAL else []
    yield from (text[:end] for end in reversed(ends) if end <= MAX_PATH_BYTES)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(user_path(path.strip()))  # noqa: PTH110  # pathlib raises if a name is too long or a folder is closed
    except (UserError, ValueError):
        return False


def _parse(text: str) -> tuple[str, dict[str, list[str]]]:
    path = _existing_path(text)
    name, bracket, inside = text[len(path) :].partition("[")
    if bracket and not inside.endswith("]"):
        raise UserError(f"brackets do not match in {shown(text)}")
    choices: dict[str, list[str]] = {}
    current = ""
    for token in split(inside[:-1]) if bracket else []:
        field, equals, value = token.partition("=")
        if equals:
            current = field.strip()
            if current in choices:
                raise UserError(f"{shown(current)} is given twice in {shown(text)}")
            choices[current] = []
        elif not current:
            raise UserError(f"{shown(text)} should read like 'name[field=value]'")
        chosen = (value if equals else token).strip()
        if not chosen:
            raise UserError(f"{shown(current)} has no value in {shown(text)}")
        choices[current].append(chosen)
    return (path + name).strip(), choices
