"""NVFlare's `PercentilePrivacy`: the client sets the smallest changes of its weights to zero and clips the others one by one.

Source: nvflare 2.9.0, app_common/filters/percentile_privacy.py; its idea is Shokri and Shmatikov's (ACM CCS 2015), not read

The filter divides the change of the weights by the number of local steps. It sets the coordinates below a percentile of all
magnitudes to zero, clips every coordinate to +-`gamma`, and multiplies by the number of steps again. The change of one step is
-lr times the update (`Scenario.step_scale`), so `gamma` / lr is the limit in the units of the update. A step of Adam is at most
about lr: at lr = 1e-4, the default `gamma` clips nothing.

The client must tell NVFlare its number of steps (NUM_STEPS_CURRENT_ROUND); otherwise the filter takes 1. Here it tells it.
NVFlare leaves parameters without dimensions unchanged; no network here has any. `percentile` = 0 clips alone.

There is no differential privacy, since nothing is random. Cost: one selection over the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch

from benchmark.base.ranges import Positive, Range
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update


@dataclass(frozen=True, kw_only=True)
class PercentilePrivacy(Defense):
    """Hyper-parameters, with the platform's names and defaults.

    Attributes:
        percentile: percentage of the coordinates that are set to zero, the smallest ones.
        gamma: largest change of a weight in one step.
    """

    uses_lr: ClassVar[bool] = True

    percentile: Annotated[float, Range(0, 100)] = 10
    gamma: Positive = 0.01

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`. A coordinate as large as the percentile is kept."""
        magnitudes = np.concatenate([value.abs().flatten().cpu().numpy() for value in update.values()])
        cutoff = float(np.percentile(magnitudes, self.percentile))
        limit = self.gamma / scenario.step_scale
        return {name: torch.where(value.abs() < cutoff, 0, value.clamp(-limit, limit)) for name, value in update.items()}

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(kept_share=1 - self.percentile / 100, coordinate_limit=self.gamma / scenario.step_scale)
