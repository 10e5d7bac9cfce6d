"""Quantisation: the client rounds every tensor of its update to 2^b - 1 equally spaced levels, or to signs.

Source: ours; signs with a common size are after the abstract of Bernstein et al. 2018 (arXiv 1802.04434)

The levels of a tensor lie evenly and symmetrically in [-m, m], where m is the largest magnitude of its coordinates. Each
coordinate is rounded to the nearest level. With one bit a coordinate becomes its sign times the mean magnitude of the tensor.
Each client rounds its own update. The update shows the levels, so an attacker knows the interval in which each coordinate lay.
Cost: one pass over the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from benchmark.base.ranges import Range
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update
from benchmark.vectors import level_width

MAX_BITS = 16
"""Largest number of bits. Rounding to so many is like half precision, which nobody takes for a defense."""


@dataclass(frozen=True, kw_only=True)
class Quantisation(Defense):
    """Hyper-parameters.

    Attributes:
        bits: bits per coordinate, 1 to 16; 8 for int8, 1 for signs.
    """

    bits: Annotated[int, Range(1, MAX_BITS)] = 8

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        return {name: self._rounded(value) for name, value in update.items()}

    def _rounded(self, value: Tensor) -> Tensor:
        if self.bits == 1:
            return value.sign() * value.abs().mean()
        width = level_width(value, self.bits)
        return torch.where(width > 0, (value / width).round() * width, value)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(bits=self.bits)
