"""A line search for the strong Wolfe conditions, as a generator: it yields a step and receives the value and slope there.

After Nocedal and Wright, Numerical Optimization (2nd edition), algorithms 3.5 and 3.6, with safeguarded cubic interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

C_1, C_2 = 1e-4, 0.9
"""The constants of sufficient decrease and of curvature, with the usual values for quasi-Newton directions."""

MAX_TRIALS = 15
"""The most steps that are tried before the best of them is taken."""


@dataclass(frozen=True)
class Point:
    """A step along the line, with the value and the slope there."""

    step: float
    value: float
    slope: float


LineSearch = Generator[tuple[float, float], tuple[float, float], float]
"""Yields (the step to try, the best step so far), receives (value, slope), returns the accepted step, 0 if no step helps.

The accepted step is the last one tried or the best step so far.
"""


def strong_wolfe(value: float, slope: float, step: float) -> LineSearch:
    """Search along a line from `value` with `slope` < 0, trying `step` > 0 first. The values sent in may be infinite or NaN."""
    start = low = Point(0.0, value, slope)
    high: Point | None = None
    for _ in range(MAX_TRIALS):
        result = yield step, low.step
        here = Point(step, *result)
        if not _descends(here, start) or here.value >= low.value:
            high = here
        elif abs(here.slope) <= -C_2 * slope:
            return step
        elif high is None and here.slope < 0:
            step = _extrapolated(low, here)
            low = here
            continue
        else:
            if high is None or here.slope * (high.step - low.step) >= 0:
                high = low
            low = here
        width = abs(high.step - low.step)
        if (width * max(abs(low.slope), abs(slope)) <= 1e-9 * abs(low.value) and low.step > 0) or width == 0:
            break
        step = _interpolated(low, high)
        if step in (low.step, high.step):
            break
    return low.step


def _descends(here: Point, start: Point) -> bool:
    """Return whether the decrease is sufficient; False if the value or slope is not finite."""
    return math.isfinite(here.slope) and here.value <= start.value + C_1 * here.step * start.slope


def _extrapolated(before: Point, here: Point) -> float:
    """Return a longer step, to the minimum of the cubic through both points.

    It is a little longer at least, and ten times as long as the last step at most.
    """
    step = _cubic(before, here)
    shortest, longest = here.step + 0.1 * (here.step - before.step), 10 * here.step
    return min(max(step, shortest), longest) if step is not None and step > here.step else longest


def _interpolated(low: Point, high: Point) -> float:
    """Return a step between the two, at least a tenth of their distance from either end.

    If there is no cubic, it is the middle, or a tenth of the way from `low` if the value at `high` is not finite.
    """
    left, right = sorted((low.step, high.step))
    step = _cubic(low, high)
    if step is None:
        return (left + right) / 2 if math.isfinite(high.value) else low.step + (high.step - low.step) / 10
    margin = (right - left) / 10
    return min(max(step, left + margin), right - margin)


def _cubic(a: Point, b: Point) -> float | None:
    """Return the minimum of the cubic with the values and slopes of both (equation 3.59 of the book), None if there is none."""
    if not (math.isfinite(b.value) and math.isfinite(b.slope)) or a.step == b.step:
        return None
    d_1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d_1 * d_1 - a.slope * b.slope
    if square < 0:
        return None
    d_2 = math.copysign(math.sqrt(square), b.step - a.step)
    divisor = b.slope - a.slope + 2 * d_2
    return b.step - (b.step - a.step) * (b.slope + d_2 - d_1) / divisor if divisor else None
