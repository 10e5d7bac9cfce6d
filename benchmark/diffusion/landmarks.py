"""What closed forms must know of a network: which layers take the time embedding, and which lie on the encoder's side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Layers of one network, by the names of its modules.

    Attributes:
        embedding: the first layer that takes the time embedding.
        projections: the layers further on that take it, in the order in which the network passes them.
        inputs: (T, width), what one of these layers is fed at each timestep.
        encoder: the modules that the network passes before its skip connections come back.
    """

    embedding: str
    projections: tuple[str, ...]
    inputs: Callable[[str], Tensor]
    encoder: frozenset[str]


def landmarks(network: nn.Module) -> Landmarks | None:
    """Return the landmarks that a network states, None where it states none."""
    if not hasattr(type(network), "landmarks"):  # an error inside the property is no lack of it
        return None
    found: Landmarks | None = network.landmarks  # type: ignore[assignment]
    return found
