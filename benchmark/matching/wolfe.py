"""A line search for the strong Wolfe conditions, as a conversation: it names a step, and is told what was found there.

After Nocedal and Wright, Numerical Optimization (2nd edition), algorithms 3.5 and 3.6, with safeguarded cubic interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

C_1, C_2 = 1e-4, 0.9
"""Sufficient decrease and curvature, the usual values for quasi-Newton directions."""

TRIALS = 15
"""Steps that are tried before the best of them is taken."""


@dataclass(frozen=True)
class Point:
    """A step along the line with the value and the slope there."""

    step: float
    value: float
    slope: float


Talk = Generator[tuple[float, float], tuple[float, float], float]
"""Yields (the step to try, the best step so far), is sent (value, slope), returns the accepted step, 0 if none helps.

The accepted step is the last one tried or the best step so far.
"""


def strong_wolfe(value: float, slope: float, step: float) -> Talk:
    """Search from `value` with `slope` < 0 along the line, trying `step` > 0 first; what is told may be infinite or nan."""
    start = low = Point(0.0, value, slope)
    high: Point | None = None
    for _ in range(TRIALS):
        found = yield step, low.step
        here = Point(step, *found)
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
    """Sufficient decrease; false for what is not finite."""
    return math.isfinite(here.slope) and here.value <= start.value + C_1 * here.step * start.slope


def _extrapolated(before: Point, here: Point) -> float:
    """A longer step: to the minimum of the cubic through both, at least a little and at most ten times further."""
    step = _cubic(before, here)
    shortest, longest = here.step + 0.1 * (here.step - before.step), 10 * here.step
    return min(max(step, shortest), longest) if step is not None and step > here.step else longest


def _interpolated(low: Point, high: Point) -> float:
    """A step between the two, a tenth of their distance away from either end; the middle where no cubic helps."""
    left, right = sorted((low.step, high.step))
    step = _cubic(low, high)
    if step is None:
        return (left + right) / 2 if math.isfinite(high.value) else low.step + (high.step - low.step) / 10
    margin = (right - left) / 10
    return min(max(step, left + margin), right - margin)


def _cubic(a: Point, b: Point) -> float | None:
    """The minimum of the cubic with the values and slopes of both (their equation 3.59), None where there is none."""
    if not (math.isfinite(b.value) and math.isfinite(b.slope)) or a.step == b.step:
        return None
    d_1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d_1 * d_1 - a.slope * b.slope
    if square < 0:
        return None
    d_2 = math.copysign(math.sqrt(square), b.step - a.step)
    divisor = b.slope - a.slope + 2 * d_2
    return b.step - (b.step - a.step) * (b.slope + d_2 - d_1) / divisor if divisor else None
