"""Batches of local training, and means of updates. Clients and attackers use the same functions, so order and mean agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor


def local_batches(images: int, clients: int, local_steps: int) -> list[list[slice]]:
    """Return the batches as slices of all images, one list of local steps for each client: client by client, step by step."""
    batch = images // (clients * local_steps)
    places = [slice(start, start + batch) for start in range(0, images, batch)]
    return [places[first : first + local_steps] for first in range(0, len(places), local_steps)]


def mean_update(updates: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of updates, by parameter name: over the steps of one client, or over clients."""
    return {name: reduce(torch.add, [update[name] for update in updates]) / len(updates) for name in updates[0]}
