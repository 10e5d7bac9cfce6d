"""Quantisation: every tensor of the update is rounded to 2^b - 1 equal levels, or to its signs.

Source: ours; signs with a common size are after the abstract of Bernstein et al. 2018 (arXiv 1802.04434)

A tensor's levels lie evenly and symmetrically in [-m, m], m the largest magnitude of its coordinates; each coordinate goes to
the nearest one. With one bit a coordinate becomes its sign times the tensor's mean magnitude. Each client rounds its own
update. The levels are in the update, so an attacker knows the cell that each coordinate was in. Cost: one pass over the update.
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

MOST_BITS = 16
"""From here on rounding is that of half precision, which no one takes for a defense."""


@dataclass(frozen=True, kw_only=True)
class Quantisation(Defense):
    """Parameters.

    Attributes:
        bits: of a coordinate; 8 for int8, 1 for signs.
    """

    bits: Annotated[int, Range(1, MOST_BITS)] = 8

    def release(self, update: Update, generator: torch.Generator) -> Update:
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
