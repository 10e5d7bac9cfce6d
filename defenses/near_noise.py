"""The client discloses its noise with a small Gaussian error; the timestep is granted, and the update is the exact gradient.

Source: github GillHuang-Xtler/GIDM_diffusion_inversion at commit 3dcd42d

That code calls the noise unknown, but it starts the attack from the true noise plus 1e-4 randn and never changes it. This
defense reproduces that scene under an honest name. It gives practically no protection.
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
    """Hyper-parameters.

    Attributes:
        std: standard deviation of the error, at least 0. The noise itself has standard deviation 1.
    """

    std: NonNegative = 1e-4

    def disclose(self, noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See `Defense.disclose`."""
        return noise + self.std * torch.randn(noise.shape, generator=generator).to(noise.device)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(disclosed_noise_error=self.std)
