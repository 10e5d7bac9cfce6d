"""Control: draws from the prior by DDIM, for every victim. The score of an attack that ignores the update.

Source: ours

It ignores the update and spends no evaluation. It is skipped if no prior is granted.

Shapes: images (B, C, H, W), in [-1, 1]. Cost: `steps` passes through the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmark.base.ranges import Count
from benchmark.diffusion.sampler import ddim
from benchmark.matching.problem import gaussian_start
from benchmark.plugins import Attack
from benchmark.types import Capability, Observation, Reconstruction


@dataclass(frozen=True, kw_only=True)
class PriorSample(Attack):
    """Hyper-parameters.

    Attributes:
        steps: steps of the sampler.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.PRIOR})
    control: ClassVar[bool] = True

    steps: Count = 50

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return [self._draw(observation, generator) for observation in observations]

    @torch.no_grad()
    def _draw(self, observation: Observation, generator: torch.Generator) -> Reconstruction:
        assert observation.prior is not None
        images = ddim(observation.prior.network, observation.prior.schedule, gaussian_start(observation, generator), self.steps)
        return Reconstruction(images, evaluations=0)
