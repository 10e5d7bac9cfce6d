"""Control: one flat colour, the mean of public images, for every victim. A floor that any attack must beat.

Source: ours

It ignores the update and spends no evaluation.

Shapes: images (B, C, H, W) in [-1, 1], constant over H and W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.matching.problem import mean_colour_start
from benchmark.plugins import Attack
from benchmark.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class ConstantImage(Attack):
    """No hyper-parameters."""

    control: ClassVar[bool] = True

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return [Reconstruction(mean_colour_start(observation), evaluations=0) for observation in observations]
