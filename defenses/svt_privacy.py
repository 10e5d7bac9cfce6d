"""NVFlare's `SVTPrivacy`: the client sends a share of its coordinates, chosen nearly at random, with Laplace noise.

Source: nvflare 2.9.0, app_common/filters/svt_privacy.py

The filter clips each coordinate of the change per step to +-`gamma`. A coordinate is accepted if its magnitude plus Laplace
noise exceeds a noisy threshold near `tau`. Passes over the other coordinates follow until there are enough. Of the accepted
ones, n = ceil(`fraction` times all) are drawn, with replacement by default, and sent with Laplace noise of scale 2 `gamma` /
`noise_var`. All others are zero. The noise of the choice has a scale of about 2 n `gamma` / `epsilon`. For a whole network this
exceeds `gamma` by orders of magnitude, so the choice hardly depends on the coordinates.

`epsilon` covers the choice only. NVFlare's own accountant adds n `noise_var` for the values that are sent: 100 000 in each
round for ten million weights and the defaults. No epsilon is stated here.

The change of one step is -lr times the update (`Scenario.step_scale`). With the same numpy random numbers, the result is
NVFlare's for tensors of up to a million coordinates; larger ones are drawn in parts there. Left out: `epsilon_threshold`,
`epsilon_query` and `epsilon_release`, which are unset by default, and parameters without dimensions. Cost: a few random numbers
per coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.base.errors import UserError
from benchmark.base.ranges import NonNegative, Positive, Share
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Update

Values = NDArray[np.float64]
"""Values of some coordinates, float64."""

MAX_PASSES = 100
"""Largest number of passes over the coordinates."""


@dataclass(frozen=True, kw_only=True)
class SVTPrivacy(Defense):
    """Hyper-parameters, with the platform's names and defaults.

    Attributes:
        fraction: share of the coordinates that are drawn, in (0, 1].
        epsilon: privacy budget of the choice.
        noise_var: privacy budget of each value that is sent. It is no variance: the noise has scale 2 gamma / noise_var.
        gamma: largest change of a weight in one step.
        tau: threshold without its noise.
        replace: whether coordinates are drawn with replacement, so that fewer different ones are sent.
    """

    uses_lr: ClassVar[bool] = True

    fraction: Share = 0.1
    epsilon: Positive = 0.1
    noise_var: Positive = 0.1
    gamma: Positive = 1e-5
    tau: NonNegative = 1e-6
    replace: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau > self.gamma:
            raise ValueError(
                f"tau must be at most gamma ({self.gamma:g}), the largest magnitude after clipping, not {self.tau:g}"
            )

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """See `Defense.release`."""
        draw = np.random.RandomState(int(torch.randint(2**32, (), generator=generator)))
        names = sorted(update)
        changes = {name: -scenario.step_scale * update[name].flatten().double().cpu().numpy() for name in names}
        sent = self.filtered(changes, draw)
        return {
            name: torch.from_numpy(-sent[name] / scenario.step_scale).to(value).view_as(value) for name, value in update.items()
        }

    def filtered(self, changes: Mapping[str, Values], draw: np.random.RandomState) -> dict[str, Values]:
        """Return what the filter makes of the changes per step, in the order of their names."""
        total = sum(change.size for change in changes.values())
        sent = math.ceil(total * self.fraction)
        accepted = self._accepted(changes, sent, draw)
        counts = _split(sent, [len(places) for places in accepted.values()], self.replace, draw)
        found = {}
        for (name, places), count in zip(accepted.items(), counts, strict=True):
            found[name] = np.zeros_like(changes[name])
            if count:
                chosen = draw.choice(places, size=count, replace=self.replace)
                noise = draw.laplace(scale=2 * self.gamma / self.noise_var, size=count)
                found[name][chosen] = np.clip(changes[name][chosen], -self.gamma, self.gamma) + noise
        return found

    def _accepted(self, changes: Mapping[str, Values], needed: int, draw: np.random.RandomState) -> dict[str, NDArray[Any]]:
        """Return the places of at least `needed` accepted coordinates.

        Raises:
            UserError: too few coordinates exceed the threshold. NVFlare would try forever.
        """
        query_epsilon = self.epsilon - self.epsilon / (1 + (2 * needed) ** (2 / 3))
        threshold = self.tau + draw.laplace(scale=self.gamma / (self.epsilon - query_epsilon))
        scale = 2 * self.gamma * needed / query_epsilon
        masks = {name: np.zeros(change.size, dtype=bool) for name, change in changes.items()}
        for _ in range(MAX_PASSES):
            for name, mask in masks.items():
                rest = np.flatnonzero(~mask)
                response = np.minimum(np.abs(changes[name][rest]), self.gamma)
                response += draw.laplace(scale=scale, size=rest.size)
                mask[rest[response >= threshold]] = True
            if sum(int(mask.sum()) for mask in masks.values()) >= needed:
                return {name: np.flatnonzero(mask) for name, mask in masks.items()}
        raise UserError(f"svt_privacy: after {MAX_PASSES} passes fewer than {needed} coordinates exceed tau = {self.tau:g}")

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`.

        With replacement, `kept_share` is what is expected if every coordinate is accepted. Otherwise it is less.
        """
        kept = 1 - math.exp(-self.fraction) if self.replace else self.fraction
        limit = self.gamma / scenario.step_scale
        return PublicParameters(kept_share=kept, coordinate_limit=limit, laplace_std=math.sqrt(2) * 2 * limit / self.noise_var)


def _split(total: int, sizes: list[int], replace: bool, draw: np.random.RandomState) -> list[int]:
    """Return how many of `total` draws from all places fall on each group of these sizes."""
    counts, left, places = [], total, sum(sizes)
    for size in sizes[:-1]:
        count = 0
        if left and size:
            count = draw.binomial(left, size / places) if replace else draw.hypergeometric(size, places - size, left)
        counts.append(int(count))
        left, places = left - int(count), places - size
    return [*counts, left]
