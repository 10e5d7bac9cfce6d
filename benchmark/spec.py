"""The small language of an axis' value: `NAME`, `NAME:ARGUMENT`, `NAME[field=value,value,other=value]`, stacked with `+`.

Several values for one field are several values of the axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from benchmark.errors import UserError


@dataclass(frozen=True)
class Spec:
    """One value of an axis, e.g. `gradient_pruning[keep=0.1]`; parameter values are still text."""

    name: str
    params: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{field}={value}" for field, value in self.params)
        return f"{self.name}[{inside}]" if inside else self.name


def split(text: str) -> list[str]:
    """Split a list at the commas that are outside brackets.

    >>> split("none,gradient_pruning[keep=0.1,0.5],dp_sgd")
    ['none', 'gradient_pruning[keep=0.1,0.5]', 'dp_sgd']
    """
    return _split(text, ",")


def expand_stacks(texts: Iterable[str]) -> list[tuple[Spec, ...]]:
    """Parse values of an axis whose values may be stacked.

    >>> ["+".join(map(str, stack)) for stack in expand_stacks(["clipping[clip=1,2]+dp_sgd"])]
    ['clipping[clip=1]+dp_sgd', 'clipping[clip=2]+dp_sgd']
    """
    stacks: list[tuple[Spec, ...]] = []
    for text in texts:
        stacks += itertools.product(*(expand([member]) for member in _split(text, "+")))
    return list(dict.fromkeys(stacks))


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators that are outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth != 0:
        raise UserError(f"brackets do not match in '{text}'")
    stripped = [part.strip() for part in parts]
    if not all(stripped):
        raise UserError(f"an empty name in '{text}'")
    return stripped


def expand(texts: Iterable[str]) -> list[Spec]:
    """Parse values of one axis; a field with several values gives one `Spec` for each combination.

    >>> [str(spec) for spec in expand(["gradient_pruning[keep=0.1,0.5]"])]
    ['gradient_pruning[keep=0.1]', 'gradient_pruning[keep=0.5]']
    """
    specs: list[Spec] = []
    for text in texts:
        name, choices = _parse(text)
        pairs = [[(field, value) for value in values] for field, values in choices.items()]
        specs += [Spec(name, combination) for combination in itertools.product(*pairs)]
    return list(dict.fromkeys(specs))


def one(text: str) -> Spec:
    """Parse a single value.

    Raises:
        UserError: its fields have several values, or it cannot be read.
    """
    specs = expand([text])
    if len(specs) > 1:
        raise UserError(f"'{text}' is {len(specs)} values where one is wanted")
    return specs[0]


def _parse(text: str) -> tuple[str, dict[str, list[str]]]:
    name, bracket, inside = text.partition("[")
    if bracket and not inside.endswith("]"):
        raise UserError(f"brackets do not match in '{text}'")
    choices: dict[str, list[str]] = {}
    current = ""
    for token in split(inside[:-1]) if bracket else []:
        field, equals, value = token.partition("=")
        if equals:
            current = field.strip()
            if current in choices:
                raise UserError(f"'{current}' is given twice in '{text}'")
            choices[current] = []
        elif not current:
            raise UserError(f"'{text}' should read like 'name[field=value]'")
        chosen = (value if equals else token).strip()
        if not chosen:
            raise UserError(f"'{current}' has no value in '{text}'")
        choices[current].append(chosen)
    return name.strip(), choices
