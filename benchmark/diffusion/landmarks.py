"""Landmarks: the layers of a network that closed-form attacks use, which take the time embedding or belong to the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Names of the modules of one network that closed-form attacks use.

    Attributes:
        embedding: the first layer, whose input is the time embedding.
        projections: the later layers whose input depends on the timestep and the weights alone, in the network's order.
        inputs: returns the input (T, width) of one of these layers at each timestep.
        encoder: the modules that run before the skip connections join the decoder.
    """

    embedding: str
    projections: tuple[str, ...]
    inputs: Callable[[str], Tensor]
    encoder: frozenset[str]


def landmarks(network: nn.Module) -> Landmarks | None:
    """Return the landmarks of a network, or None if it states none."""
    if not hasattr(type(network), "landmarks"):  # `getattr` with a default would hide an error inside the property
        return None
    stated: Landmarks | None = network.landmarks  # type: ignore[assignment]
    return stated
