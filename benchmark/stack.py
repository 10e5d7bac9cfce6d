"""Several defenses at once, written `a+b`.

All of them act, each at its own point of a client's round: networks are prepared and timesteps drawn first, then each step's
gradients are combined, then the update is released. At one point they act from left to right, so `clipping+gaussian_noise`
clips and then adds noise. What contradicts itself is refused: a name twice, two that decide how gradients are combined, one
written after another that acts later, two that disclose the same, and noise that one hides and another discloses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.errors import UserError
from benchmark.federation import ClientStep
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import Capability, Privacy, PublicParameters, Update


def stacked(members: Mapping[str, Defense]) -> Defense:
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
    _check_order(name, members)
    disclosed: dict[str, str] = {}
    for member, defense in members.items():
        for field in sorted(defense.public(Scenario()).disclosed):
            if field in disclosed:
                raise UserError(f"defense '{name}': '{disclosed[field]}' and '{member}' both decide the {field}")
            disclosed[field] = member
    hiding = [member for member, defense in members.items() if Capability.NOISE in defense.hides]
    if hiding and (telling := [member for member, defense in members.items() if "disclose" in _points(defense)]):
        raise UserError(f"defense '{name}': '{hiding[0]}' hides the noise that '{telling[0]}' discloses")
    return Stack(tuple(members.values()))


POINTS = ("prepare", "timesteps", "gradient", "release", "disclose", "aggregates", "hides")
"""Where a defense may act."""


def _points(defense: Defense) -> set[str]:
    """Where it does act."""
    return {point for point in POINTS if getattr(type(defense), point) != getattr(Defense, point)}


def _check_order(name: str, members: Mapping[str, Defense]) -> None:
    combining = [member for member, defense in members.items() if "gradient" in _points(defense)]
    if len(combining) > 1:
        raise UserError(f"defense '{name}': '{combining[0]}' and '{combining[1]}' both decide how gradients are combined")
    order = list(members)
    releasing = [member for member, defense in members.items() if "release" in _points(defense)]
    if combining and releasing and order.index(releasing[0]) < order.index(combining[0]):
        raise UserError(f"defense '{name}': '{combining[0]}' acts before '{releasing[0]}' and must be written before it")


@dataclass(frozen=True)
class Stack(Defense):
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

    def timesteps(self, drawn: Tensor, scenario: Scenario, steps: int) -> Tensor:
        """See `Defense.timesteps`: one after the other."""
        return reduce(lambda so_far, member: member.timesteps(so_far, scenario, steps), self.members, drawn)

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
