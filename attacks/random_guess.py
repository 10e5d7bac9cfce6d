"""Control: pixels drawn uniformly. It shows how an attack scores that knows nothing.

Source: ours

It ignores the update and spends no evaluation.

Shapes: images (B, C, H, W), independent and uniform in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.plugins import Attack
from benchmark.types import Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class RandomGuess(Attack):
    """No hyper-parameters."""

    control: ClassVar[bool] = True

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return [
            Reconstruction(
                (2 * torch.rand(observation.batch_shape, generator=generator) - 1).to(observation.network.device), evaluations=0
            )
            for observation in observations
        ]
