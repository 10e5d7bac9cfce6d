"""Declarations of the public parameters of a defense. Each field of `types.PublicParameters` has one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class Scope(Enum):
    """Which update a public parameter describes."""

    CLIENT = "each client's own update; it does not apply if the server receives the mean of several"
    AGGREGATE = "the update that the server receives, of one client or of several"


class Release(IntEnum):
    """The steps of a release, which turn a client's gradient into what it sends. A stack of defenses must keep this order."""

    CLIP = 1
    LIMIT = 2
    NOISE = 3
    PRUNE = 4
    ROUND = 5


class User(Enum):
    """Which code uses a public parameter."""

    ENGINE = "every search of `matching.engine`, whatever its distance"
    COMPARISON = "`matching.defense_aware.as_released`, around any distance"
    DISTANCE = "`matching.defense_aware.distance`"
    RESTORATION = "`closed_form.losses.measurements`"
    LIKELIHOOD = "`matching.defense_aware.likelihood`"
    ATTACK = "the attacks that name it in `adapts_to`"
    LABEL = "no attack; it only changes a label in the tables"


@dataclass(frozen=True)
class Declaration:
    """The declared properties of one public parameter.

    Attributes:
        users: the code that uses the parameter, at least one.
        scope: the update that the parameter describes.
        release: the step of a release that the parameter describes, or None.
        implied_by_timestep: whether an attack that is granted the timesteps learns nothing from the parameter.
    """

    users: frozenset[User]
    scope: Scope
    release: Release | None
    implied_by_timestep: bool


def parameter(
    user: User,
    *more_users: User,
    scope: Scope = Scope.AGGREGATE,
    release: Release | None = None,
    implied_by_timestep: bool = False,
) -> Any:
    """Return the dataclass field of a public parameter, with default None.

    The arguments are the attributes of `Declaration`; `user` and `more_users` together are its `users`.
    """
    declared = Declaration(frozenset({user, *more_users}), scope, release, implied_by_timestep)
    return dataclasses.field(default=None, metadata={Declaration.__name__: declared})


def declaration(field: dataclasses.Field[Any]) -> Declaration:
    """Return the declaration of a public parameter's field.

    Raises:
        TypeError: the field has no declaration.
    """
    if Declaration.__name__ not in field.metadata:
        raise TypeError(f"the public parameter '{field.name}' has no declaration: make it with `disclosure.parameter`")
    declared: Declaration = field.metadata[Declaration.__name__]
    return declared
