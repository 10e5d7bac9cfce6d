"""The declared range of a number, and the one place that checks it.

A dataclass declares the range in the field's type, `evaluations: Count = 300`. `check_fields` refuses NaN, infinity and
whatever lies outside. It runs for every plugin, grid and scenario, whether it was built from text or in Python. A field
without a range must still be finite.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from benchmark.base.errors import shown

LARGEST = 10**9
"""The greatest count and the greatest size of a number: more is a mistake, and would run for years."""


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have.

    Attributes:
        least: the smallest.
        most: the greatest.
        above: whether `least` itself is excluded.
        below: whether `most` itself is excluded.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether the value lies inside; NaN never does."""
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return low and high

    def wanted(self, value: float) -> str:
        """Return what a field must be, given a value that it must not have: `at least 1`, `from 0 to 1`, `finite`."""
        if self.most < LARGEST:
            return self._between()
        if math.isfinite(value) and value > self.least:
            return f"at most {self.most:g}"
        return f"{self._low} {self.least:g}" + ("" if math.isfinite(value) else " and finite")

    def _between(self) -> str:
        if self.above and self.below:
            return f"between {self.least:g} and {self.most:g}"
        if self.above or self.below:
            return f"{self._low} {self.least:g} and {'below' if self.below else 'at most'} {self.most:g}"
        return f"from {self.least:g} to {self.most:g}"

    @property
    def _low(self) -> str:
        return "above" if self.above else "at least"


Count = Annotated[int, Range(1, LARGEST)]
"""A number of things, at least one."""

Natural = Annotated[int, Range(0, LARGEST)]
"""A number of things, or a timestep."""

Positive = Annotated[float, Range(0, LARGEST, above=True)]
"""A size above 0."""

NonNegative = Annotated[float, Range(0, LARGEST)]
"""A size, 0 included."""

Share = Annotated[float, Range(0, 1, above=True)]
"""A part of something, in (0, 1]."""

InnerShare = Annotated[float, Range(0, 1, above=True, below=True)]
"""A part of something that leaves a part over, in (0, 1)."""

AnyShare = Annotated[float, Range(0, 1)]
"""A part of something, nothing and all included, in [0, 1]."""


def check_fields(instance: Any) -> None:
    """Refuse a dataclass with a number outside its declared range.

    Raises:
        ValueError: a number, or one inside a tuple, is not finite or lies outside; the message names field, range and value.
    """
    hints = get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        check_range(field.name, hints[field.name], getattr(instance, field.name))


def check_range(name: str, hint: Any, value: Any) -> None:
    """Refuse a number outside the range that its type hint declares, as `check_fields` does for all fields.

    Raises:
        ValueError: as there.
    """
    for number in _numbers(value):
        allowed = _range(hint, number)
        if number not in allowed:
            raise ValueError(f"{name} must be {allowed.wanted(number)}, not {_number(number)}")


def declared(hint: Any) -> list[Range]:
    """Return the ranges that a type hint declares, also inside a union or a tuple."""
    if get_origin(hint) is Annotated:
        return [part for part in get_args(hint)[1:] if isinstance(part, Range)]
    return [found for part in get_args(hint) for found in declared(part)]


def _range(hint: Any, value: float) -> Range:
    """Return the declared range, by default that of all numbers that can be computed with."""
    ranges = declared(hint)
    return ranges[0] if ranges else Range(-(2**63), 2**63 - 1) if isinstance(value, int) else Range(-1e30, 1e30)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [value]
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else []


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else shown(value)
