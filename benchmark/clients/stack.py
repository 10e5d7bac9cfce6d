"""Several defenses at once, written `a+b`.

All of them act, each at its own points of a client's round, and are written in the order in which they act: what changes the
network, then the timesteps, then how gradients are combined, then what is released, then aggregation. Releases stand in one
order too: clip, add noise, prune, round; attackers who know a defense know it in that order (`benchmark.matching.adapted`).
What only hides or discloses may stand anywhere.

Refused is what contradicts that, a name twice, two that decide how gradients are combined or the same public parameter, two
kinds of noise, noise that one hides and another discloses, and what changes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.diffusion.denoiser import Denoiser
from benchmark.plugins import ClientStep, Defense
from benchmark.scenario import Scenario
from benchmark.types import Capability, Privacy, PublicParameters, Update

ROAD = ("prepare", "least_timestep", "gradient", "release", "aggregates")
"""Where a defense may act, in the order of a round."""

POINTS = (*ROAD, "disclose", "hides")
"""Where a defense may act at all."""

RELEASES = (
    frozenset({"clip_norm", "update_clip_norm"}),
    frozenset({"noise_std", "gaussian_ratio", "laplace_ratio"}),
    frozenset({"kept_share"}),
    frozenset({"bits"}),
)
"""The public parameters of what is done to gradients and updates, in the order in which it may be done."""


def stack(members: Mapping[str, Defense]) -> Defense:
    """The defenses together, by name and from left to right; a single one is itself.

    Raises:
        UserError: they contradict each other.
    """
    if len(members) == 1:
        return next(iter(members.values()))
    name = "+".join(members)
    for member, defense in members.items():
        if not _points(defense):
            raise UserError(f"defense '{name}': '{member}' changes nothing and has no place in a stack")
    for (first, one), (second, other) in itertools.combinations(members.items(), 2):
        if reason := _contradiction(first, one, second, other):
            raise UserError(f"defense '{name}': {reason}")
    return Stacked(tuple(members.values()))


def _points(defense: Defense) -> set[str]:
    """Where it does act."""
    return {point for point in POINTS if getattr(type(defense), point) != getattr(Defense, point)}


def _contradiction(first: str, one: Defense, second: str, other: Defense) -> str | None:
    """Why `first` cannot stand before `second`, None where it can."""
    if "gradient" in _points(one) & _points(other):
        return f"'{first}' and '{second}' both decide how gradients are combined"
    told = [defense.public(Scenario()).disclosed for defense in (one, other)]
    if both := sorted(told[0] & told[1]):
        return f"'{first}' and '{second}' both decide the {both[0]}"
    if all(fields & RELEASES[1] for fields in told):
        return f"'{first}' and '{second}' both add noise"
    hiding = [name for name, defense in ((first, one), (second, other)) if Capability.NOISE in defense.hides]
    telling = [name for name, defense in ((first, one), (second, other)) if "disclose" in _points(defense)]
    if hiding and telling:
        return f"'{hiding[0]}' hides the noise that '{telling[0]}' discloses"
    latest = [[ROAD.index(point) for point in _points(defense) if point in ROAD] for defense in (one, other)]
    releases = [[place for place, fields in enumerate(RELEASES) if fields & names] for names in told]
    for done in (latest, releases):
        if all(done) and max(done[0]) > max(done[1]):
            return f"'{second}' acts before '{first}' and must be written before it"
    return None


@dataclass(frozen=True)
class Stacked(Defense):
    """See the module.

    Attributes:
        members: the defenses, from left to right.
    """

    members: tuple[Defense, ...]

    @property
    def hides(self) -> frozenset[Capability]:  # type: ignore[override]
        """See `Defense.hides`: what any of them hides."""
        return frozenset[Capability]().union(*(member.hides for member in self.members))

    @property
    def aggregates(self) -> bool:  # type: ignore[override]
        """See `Defense.aggregates`: whether any of them does."""
        return any(member.aggregates for member in self.members)

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`: one after the other."""
        return reduce(lambda so_far, member: member.prepare(so_far, generator), self.members, network)

    def least_timestep(self, scenario: Scenario, steps: int) -> int:
        """See `Defense.least_timestep`: the greatest of theirs."""
        return max(member.least_timestep(scenario, steps) for member in self.members)

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`: as the one that decides it does."""
        deciding = next((member for member in self.members if "gradient" in _points(member)), self.members[0])
        return deciding.gradient(step, generator)

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """See `Defense.release`: one after the other."""
        return reduce(lambda so_far, member: member.release(so_far, generator), self.members, update)

    def disclose(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """See `Defense.disclose`: one after the other."""
        return reduce(lambda so_far, member: member.disclose(so_far, generator), self.members, noise)

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`: what any of them discloses."""
        told: Sequence[PublicParameters] = [member.public(scenario) for member in self.members]
        fields: dict[str, Any] = {field: getattr(public, field) for public in told for field in public.disclosed}
        return dataclasses.replace(PublicParameters(), **fields)

    def privacy(self, scenario: Scenario) -> Privacy | None:
        """See `Defense.privacy`: that of the first that has one; what follows only sees what it has made private."""
        guarantees = (member.privacy(scenario) for member in self.members)
        return next((guarantee for guarantee in guarantees if guarantee), None)
