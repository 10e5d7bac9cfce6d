"""The client discloses its noise with a small Gaussian error; the timestep is granted, the update is the exact gradient.

Source: github GillHuang-Xtler/GIDM_diffusion_inversion at commit 3dcd42d

It names the scene which that code really runs where the noise is said to be unknown: the attack starts from the true noise
plus 1e-4 randn and never changes it. It protects nothing to speak of, and is here so that such outcomes can be reproduced and
seen for what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.base.ranges import NonNegative
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class NearNoise(Defense):
    """Parameters.

    Attributes:
        std: standard deviation of the error; the noise itself has 1.
    """

    std: NonNegative = 1e-4

    def disclose(self, noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See `Defense.disclose`."""
        return noise + self.std * torch.randn(noise.shape, generator=generator).to(noise.device)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(disclosed_noise_error=self.std)
