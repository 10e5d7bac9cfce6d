"""Declared ranges of numeric fields, and the functions that check them.

A dataclass declares a range in the type of a field, e.g. `evaluations: Count = 300`. `check_fields` rejects NaN, infinity and
numbers outside the range. It runs for every plugin, grid and scenario, whether built from text or in Python. Numbers in a
field without a range must be finite too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from benchmark.base.errors import shown

MAX_NUMBER = 10**9
"""Default upper limit of all ranges. A greater number is a mistake, e.g. a count that would take years to run."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have.

    Attributes:
        least: smallest value.
        most: greatest value.
        above: whether `least` itself is excluded.
        below: whether `most` itself is excluded.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether the value lies in the range; this is False for NaN."""
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return low and high

    def describe(self, value: float) -> str:
        """Return a description of the range for the error message about `value`, e.g. `at least 1` or `from 0 to 1`."""
        if self.most < MAX_NUMBER:
            return self._two_sided()
        if math.isfinite(value) and value > self.least:
            return f"at most {self.most:g}"
        return f"{self._lower_word} {self.least:g}" + ("" if math.isfinite(value) else " and finite")

    def _two_sided(self) -> str:
        if self.above and self.below:
            return f"between {self.least:g} and {self.most:g}"
        if self.above or self.below:
            return f"{self._lower_word} {self.least:g} and {'below' if self.below else 'at most'} {self.most:g}"
        return f"from {self.least:g} to {self.most:g}"

    @property
    def _lower_word(self) -> str:
        return "above" if self.above else "at least"


Count = Annotated[int, Range(1, MAX_NUMBER)]
"""A whole number, at least 1."""

Natural = Annotated[int, Range(0, MAX_NUMBER)]
"""A whole number, at least 0, e.g. a timestep."""

Positive = Annotated[float, Range(0, MAX_NUMBER, above=True)]
"""A number above 0."""

NonNegative = Annotated[float, Range(0, MAX_NUMBER)]
"""A number, at least 0."""

Share = Annotated[float, Range(0, 1, above=True)]
"""A share in (0, 1]."""

InnerShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""A share in (0, 1)."""

AnyShare = Annotated[float, Range(0, 1)]
"""A share in [0, 1]."""


def check_fields(instance: Any) -> None:
    """Check that every number in a dataclass lies in the declared range of its field.

    Raises:
        ValueError: a number, also inside a tuple, is not finite or lies outside. The message names field, range and value.
    """
    hints = get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        check_range(field.name, hints[field.name], getattr(instance, field.name))


def check_range(name: str, hint: Any, value: Any) -> None:
    """Check that a value lies in the range that its type hint declares. `name` is its name in the message.

    Raises:
        ValueError: see `check_fields`.
    """
    for number in _numbers(value):
        allowed = _range_of(hint, number)
        if number not in allowed:
            raise ValueError(f"{name} must be {allowed.describe(number)}, not {_formatted(number)}")


def declared(hint: Any) -> list[Range]:
    """Return all ranges that a type hint declares, also inside a union or a tuple."""
    if get_origin(hint) is Annotated:
        return [part for part in get_args(hint)[1:] if isinstance(part, Range)]
    return [found for part in get_args(hint) for found in declared(part)]


def _range_of(hint: Any, value: float) -> Range:
    """Return the declared range. By default, it is 64 bits for an integer and +-1e30 for another number."""
    ranges = declared(hint)
    return ranges[0] if ranges else Range(-(2**63), 2**63 - 1) if isinstance(value, int) else Range(-1e30, 1e30)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [value]
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else []


def _formatted(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else shown(value)
