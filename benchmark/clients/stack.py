"""Several defenses at once, written `a+b`.

All of them act, each at its own points of a client's round, and are written in the order in which they act: what changes the
network, then the timesteps, then how gradients are combined, then what is released, then aggregation. Releases stand in one
order too (`disclosure.Release`); attackers who know a defense know it in that order (`benchmark.matching.defense_aware`).
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
from benchmark.disclosure import Release
from benchmark.plugins import ClientStep, Defense
from benchmark.scenario import Scenario
from benchmark.types import Capability, Privacy, PublicParameters, Update

ROAD = ("prepare", "least_timestep", "gradient", "release", "aggregates")
"""Where a defense may act, in the order of a round."""

POINTS = (*ROAD, "disclose", "hides")
"""Where a defense may act at all."""


def stack(members: Mapping[str, Defense]) -> Defense:
    """The defenses together, by name and from left to right; a single one is itself.

    Raises:
        UserError: they contradict each other.
    """
    if len(members) == 1:
        return next(iter(members.values()))
    stacked, name = [_Member(*member) for member in members.items()], "+".join(members)
    for member in stacked:
        if not member.points:
            raise UserError(f"defense '{name}': '{member.name}' changes nothing and has no place in a stack")
    for earlier, later in itertools.combinations(stacked, 2):
        if reason := _decided_twice(earlier, later) or _hidden_noise(earlier, later) or _out_of_order(earlier, later):
            raise UserError(f"defense '{name}': {reason}")
    return Stacked(tuple(members.values()))


@dataclass(frozen=True)
class _Member:
    """A defense in a stack, under its name."""

    name: str
    defense: Defense

    @property
    def points(self) -> frozenset[str]:
        """Where the defense acts."""
        return _points(self.defense)

    @property
    def public(self) -> PublicParameters:
        """What it discloses."""
        return self.defense.public(Scenario())


def _points(defense: Defense) -> frozenset[str]:
    return frozenset(point for point in POINTS if getattr(type(defense), point) != getattr(Defense, point))


def _decided_twice(earlier: _Member, later: _Member) -> str | None:
    """Return what both decide, None where that is nothing."""
    both = f"'{earlier.name}' and '{later.name}' both"
    if "gradient" in earlier.points & later.points:
        return f"{both} decide how gradients are combined"
    if shared := sorted(earlier.public.disclosed & later.public.disclosed):
        return f"{both} decide the {shared[0]}"
    if Release.NOISE in earlier.public.releases & later.public.releases:
        return f"{both} add noise"
    return None


def _hidden_noise(earlier: _Member, later: _Member) -> str | None:
    """Return which member hides the noise that the other one discloses, None where none does."""
    for hiding, disclosing in ((earlier, later), (later, earlier)):
        if Capability.NOISE in hiding.defense.hides and "disclose" in disclosing.points:
            return f"'{hiding.name}' hides the noise that '{disclosing.name}' discloses"
    return None


def _out_of_order(earlier: _Member, later: _Member) -> str | None:
    """Return that the last act of the earlier member comes after that of the later one, None where it does not."""
    acts = [[ROAD.index(point) for point in member.points & set(ROAD)] for member in (earlier, later)]
    releases = [member.public.releases for member in (earlier, later)]
    for before, after in (acts, releases):
        if before and after and max(before) > max(after):
            return f"'{later.name}' acts before '{earlier.name}' and must be written before it"
    return None


@dataclass(frozen=True)
class Stacked(Defense):
    """See the module.

    Attributes:
        members: the defenses, from left to right.
    """

    members: tuple[Defense, ...]

    @property
    def hides(self) -> frozenset[Capability]:
        """See `Defense.hides`: what any of them hides."""
        return frozenset[Capability]().union(*(member.hides for member in self.members))

    @property
    def aggregates(self) -> bool:
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
