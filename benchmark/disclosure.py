"""How a public parameter of a defense is declared: once, with its field in `types.PublicParameters`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class Scope(Enum):
    """The update that a public parameter describes."""

    CLIENT = "each client's own update: void where the server receives the mean of several"
    AGGREGATE = "the update that the server receives, of one client or of several"


class Release(IntEnum):
    """The steps from a client's gradients to what it sends, in the only order in which a stack of defenses may take them."""

    CLIP = 1
    NOISE = 2
    PRUNE = 3
    ROUND = 4


class User(Enum):
    """Who takes account of a public parameter."""

    ENGINE = "every search of `matching.engine`, whatever its distance"
    COMPARISON = "`matching.defense_aware.as_released`, around any distance"
    DISTANCE = "`matching.defense_aware.distance`"
    LIKELIHOOD = "`matching.defense_aware.likelihood`"
    ATTACK = "the attacks that name it in `adapts_to`"
    LABEL = "no attack; it only changes a label in the tables"


@dataclass(frozen=True)
class Declaration:
    """What the bench has to know of a public parameter.

    Attributes:
        users: who takes account of it, at least one.
        scope: the update that it describes.
        release: the step of a release that it describes, None where it describes none.
        implied_by_timestep: whether an attack that is granted the timesteps learns nothing from it.
    """

    users: frozenset[User]
    scope: Scope
    release: Release | None
    implied_by_timestep: bool


def parameter(
    user: User,
    *more: User,
    scope: Scope = Scope.AGGREGATE,
    release: Release | None = None,
    implied_by_timestep: bool = False,
) -> Any:
    """Return the dataclass field of a public parameter, None by default. Arguments are those of `Declaration`."""
    declared = Declaration(frozenset({user, *more}), scope, release, implied_by_timestep)
    return dataclasses.field(default=None, metadata={Declaration.__name__: declared})


def declaration(field: dataclasses.Field[Any]) -> Declaration:
    """Return how the field of a public parameter was declared.

    Raises:
        TypeError: it was not.
    """
    if Declaration.__name__ not in field.metadata:
        raise TypeError(f"the public parameter '{field.name}' has no declaration: make it with `disclosure.parameter`")
    found: Declaration = field.metadata[Declaration.__name__]
    return found
