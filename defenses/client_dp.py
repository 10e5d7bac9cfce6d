"""Client-level differential privacy: each client clips its whole update and adds Gaussian noise before it sends it.

Source: after the abstract of McMahan et al. 2018 (arXiv 1710.06963), with the noise on the client's side

In that paper a trusted server adds the noise to the sum of many clients. Here the server is the attacker, so each client adds
all of the noise itself. The guarantee is each client's own and does not depend on anybody else.

Two neighbouring data sets differ in one client: its update, or zero in its place. Every client takes part in every round. If
one update were exchanged for another, the sensitivity would be 2 `clip`, and epsilon would be that of half the noise
multiplier.

The update is the mean of a client's gradients over its local steps, (theta_0 - theta_E) / (lr E). `clip` is in the same units.
Cost: one pass over the update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmark.clients.privacy import GaussianMechanism, guarantee
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import Privacy, PublicParameters, Update
from benchmark.vectors import add_noise, clip_to_norm, gaussian


@dataclass(frozen=True, kw_only=True)
class ClientDP(GaussianMechanism, Defense):
    """The hyper-parameters of `GaussianMechanism`, and no others."""

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        return add_noise(clip_to_norm(update, self.clip), self.noise_multiplier * self.clip, gaussian, generator)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; `noise_std` is the standard deviation of the noise on each coordinate of the clients' mean."""
        noise_std = self.noise_multiplier * self.clip / math.sqrt(scenario.clients)
        return PublicParameters(update_clip_norm=self.clip, noise_std=noise_std)

    def privacy(self, scenario: Scenario) -> Privacy:
        """See `Defense.privacy`."""
        return guarantee(self.noise_multiplier, 1.0, 1, self.rounds, self.delta, "a client's update or zero in its place")
