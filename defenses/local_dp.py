"""Flower's `LocalDpMod`: the client clips the change of its weights and adds Gaussian noise to the weights that it sends.

Source: flwr 1.42.0, clientapp/mod/localdp_mod.py and supercore/differential_privacy.py

The standard deviation of the noise is sensitivity sqrt(2 ln(1.25 / delta)) / epsilon. Two facts separate the stated epsilon
from the real one:

- The formula's proof needs epsilon below 1. Above it, the real epsilon may be larger than the stated one, as it is at 10.
- `sensitivity` is free, but the change is clipped to `clipping_norm`, so that norm is the sensitivity for a client's update or
  zero in its place. If one update were exchanged for another, it would be twice the norm.

`epsilon` is what the platform states. The tables show the real epsilon, of the Gaussian mechanism with the noise multiplier
sigma / `clipping_norm`, for one round and for `rounds` of them.

The units are those of the change, lr E times the update. Flower clips and disturbs every array that a client sends, so also
buffers, which no network here sends. Rounding to float32 weights is the scenario's `message: weights`. Cost: one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from benchmark.base.ranges import Count, NonNegative, Positive, Range
from benchmark.clients.privacy import MIN_DELTA, guarantee
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import Privacy, PublicParameters, Update
from benchmark.vectors import add_noise, clip_to_norm, gaussian


@dataclass(frozen=True, kw_only=True)
class LocalDP(Defense):
    """Hyper-parameters, with the platform's names. It has no defaults; ours make `sensitivity` equal to `clipping_norm`.

    Attributes:
        clipping_norm: l2 norm to which the change of the weights is clipped.
        sensitivity: the sensitivity in the formula; 0 adds no noise.
        epsilon: the epsilon in the formula.
        delta: the delta in the formula and of the real guarantee.
        rounds: number of rounds that the real epsilon in total composes.
    """

    uses_lr: ClassVar[bool] = True

    clipping_norm: Positive = 1.0
    sensitivity: NonNegative = 1.0
    epsilon: Positive = 1.0
    delta: Annotated[float, Range(MIN_DELTA, 1, below=True)] = 1e-5
    rounds: Count = 100

    @property
    def sigma(self) -> float:
        """Return the standard deviation of the noise on each weight."""
        return self.sensitivity * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        clipped = clip_to_norm(update, self.clipping_norm / scenario.scale)
        return add_noise(clipped, self.sigma / scenario.scale, gaussian, generator)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`; `noise_std` is the standard deviation of the noise on each coordinate of the clients' mean."""
        noise_std = self.sigma / scenario.scale / math.sqrt(scenario.clients)
        return PublicParameters(update_clip_norm=self.clipping_norm / scenario.scale, noise_std=noise_std)

    def privacy(self, scenario: Scenario) -> Privacy:
        """See `Defense.privacy`: the real guarantee, whatever the formula states."""
        adjacency = "a client's update or zero in its place"
        return guarantee(self.sigma / self.clipping_norm, 1.0, 1, self.rounds, self.delta, adjacency)
