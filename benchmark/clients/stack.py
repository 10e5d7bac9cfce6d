"""Stacks of several defenses, written `a+b`.

All members of a stack act, each at its own points of a client's round. They must be written in the order in which they act:
first changes of the network, then of the timesteps, of the gradients, of the sent update, and last aggregation. The changes
of the sent update have a fixed order as well (`disclosure.Release`). Defense-aware attacks rely on that order
(`benchmark.matching.defense_aware`). A defense that only hides or discloses something may stand anywhere.

A stack is refused if:

* its members are written in another order;
* a member changes nothing;
* two members decide how gradients are combined, decide the same public parameter, or add noise to the update;
* one member hides the noise that another one discloses.

The planner (`benchmark.experiment.plan`) also refuses a stack that names one defense twice.
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

ROUND_ORDER = ("prepare", "least_timestep", "gradient", "release", "aggregates")
"""The methods of `Defense` whose order in a round is fixed, in that order."""

ACTION_POINTS = (*ROUND_ORDER, "disclose", "hides")
"""All methods and properties of `Defense` with which a defense can change a round."""


def stack(members: Mapping[str, Defense]) -> Defense:
    """Combine defenses into one. A single defense is returned unchanged.

    Args:
        members: the defenses by name, in the order in which they act.

    Raises:
        UserError: the defenses contradict each other, are in the wrong order, or one of them changes nothing.
    """
    if len(members) == 1:
        return next(iter(members.values()))
    stacked, name = [_Member(*member) for member in members.items()], "+".join(members)
    for member in stacked:
        if not member.points:
            raise UserError(f"defense '{name}': '{member.name}' changes nothing, so it cannot be part of a stack")
    for earlier, later in itertools.combinations(stacked, 2):
        if reason := _decided_twice(earlier, later) or _hidden_noise(earlier, later) or _out_of_order(earlier, later):
            raise UserError(f"defense '{name}': {reason}")
    return Stacked(tuple(members.values()))


@dataclass(frozen=True)
class _Member:
    """A defense in a stack, with its name."""

    name: str
    defense: Defense

    @property
    def points(self) -> frozenset[str]:
        """Return the points of a round where the defense acts."""
        return _points(self.defense)

    @property
    def public(self) -> PublicParameters:
        """Return the public parameters that it discloses in the default scenario."""
        return self.defense.public(Scenario())


def _points(defense: Defense) -> frozenset[str]:
    return frozenset(point for point in ACTION_POINTS if getattr(type(defense), point) != getattr(Defense, point))


def _decided_twice(earlier: _Member, later: _Member) -> str | None:
    """Return a description of what both members decide, None if there is nothing."""
    both = f"'{earlier.name}' and '{later.name}' both"
    if "gradient" in earlier.points & later.points:
        return f"{both} decide how gradients are combined"
    if shared := sorted(earlier.public.disclosed & later.public.disclosed):
        return f"{both} decide the {shared[0]}"
    if Release.NOISE in earlier.public.releases & later.public.releases:
        return f"{both} add noise"
    return None


def _hidden_noise(earlier: _Member, later: _Member) -> str | None:
    """Return which member hides the noise that the other one discloses, None if there is no such conflict."""
    for hiding, disclosing in ((earlier, later), (later, earlier)):
        if Capability.NOISE in hiding.defense.hides and "disclose" in disclosing.points:
            return f"'{hiding.name}' hides the noise that '{disclosing.name}' discloses"
    return None


def _out_of_order(earlier: _Member, later: _Member) -> str | None:
    """Return how the written order contradicts the order of a round or of releases, None if it does not."""
    acts = [[ROUND_ORDER.index(point) for point in member.points & set(ROUND_ORDER)] for member in (earlier, later)]
    releases = [member.public.releases for member in (earlier, later)]
    for before, after in (acts, releases):
        if before and after and max(before) > max(after):
            return f"'{later.name}' acts before '{earlier.name}' and must be written before it"
    return None


@dataclass(frozen=True)
class Stacked(Defense):
    """A defense that applies several defenses one after the other.

    Attributes:
        members: the defenses, in the order in which they act.
    """

    members: tuple[Defense, ...]

    @property
    def hides(self) -> frozenset[Capability]:
        """Return what at least one member hides. See `Defense.hides`."""
        return frozenset[Capability]().union(*(member.hides for member in self.members))

    @property
    def aggregates(self) -> bool:
        """Return whether at least one member aggregates. See `Defense.aggregates`."""
        return any(member.aggregates for member in self.members)

    @property
    def uses_lr(self) -> bool:
        """Return whether the step size decides what at least one member does. See `Defense.uses_lr`."""
        return any(member.uses_lr for member in self.members)

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """Apply all members' `prepare`, one after the other. See `Defense.prepare`."""
        return reduce(lambda result, member: member.prepare(result, generator), self.members, network)

    def least_timestep(self, scenario: Scenario, steps: int) -> int:
        """Return the largest of the members' least timesteps. See `Defense.least_timestep`."""
        return max(member.least_timestep(scenario, steps) for member in self.members)

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """Return the gradient of the only member that changes gradients, if there is one. See `Defense.gradient`."""
        deciding = next((member for member in self.members if "gradient" in _points(member)), self.members[0])
        return deciding.gradient(step, generator)

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """Apply all members' `release`, one after the other. See `Defense.release`."""
        return reduce(lambda result, member: member.release(result, scenario, generator), self.members, update)

    def disclose(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Apply all members' `disclose`, one after the other. See `Defense.disclose`."""
        return reduce(lambda result, member: member.disclose(result, generator), self.members, noise)

    def public(self, scenario: Scenario) -> PublicParameters:
        """Return the public parameters of all members together. See `Defense.public`."""
        disclosed_by_member: Sequence[PublicParameters] = [member.public(scenario) for member in self.members]
        fields: dict[str, Any] = {field: getattr(public, field) for public in disclosed_by_member for field in public.disclosed}
        return dataclasses.replace(PublicParameters(), **fields)

    def privacy(self, scenario: Scenario) -> Privacy | None:
        """Return the guarantee of the first member that has one. See `Defense.privacy`.

        Later members only post-process the private output of that member, so its guarantee remains valid.
        """
        guarantees = (member.privacy(scenario) for member in self.members)
        return next((guarantee for guarantee in guarantees if guarantee), None)
