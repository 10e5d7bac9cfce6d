"""A cache of the networks and mean colours that the cells of one run share, so that each is built only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import TypeVar

import torch
from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.models import Model, build_network
from benchmark.plugins import Dataset

MAX_NETWORKS = 4
"""Maximum number of networks kept in memory."""

MAX_COLOURS = 8
"""Maximum number of mean colours kept. Each one needs a pass over all public images."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache:
    """The networks and mean colours that a run has built. A caller must copy a network before changing it."""

    def __init__(self) -> None:
        self._networks: dict[tuple[Model, int], Denoiser] = {}
        self._colours: dict[tuple[Dataset, int], Tensor] = {}

    def network(self, model: Model, seed: int) -> Denoiser:
        """Return the network of a model. Random weights are drawn from `seed`.

        Raises:
            UserError: the model's files cannot be loaded.
        """
        key = (dataclasses.replace(model, prior=None), seed)  # the weights do not depend on the prior that is granted
        network = self._networks.pop(key, None) or build_network(*key)
        _keep(self._networks, key, network, MAX_NETWORKS)
        return network

    def mean_colour(self, dataset: Dataset, size: int) -> Tensor:
        """Return the mean colour (C,), in [-1, 1], of a data set's public images at `size` x `size` pixels.

        Raises:
            UserError: there are no public images, or one cannot be read.
        """
        key = (dataset, size)
        colour = self._colours.pop(key, None)
        if colour is None:
            colour = torch.stack([picture.image for picture in dataset.public(size)]).mean(dim=(0, 2, 3))
        _keep(self._colours, key, colour, MAX_COLOURS)
        return colour


def _keep(entries: dict[Key, Value], key: Key, value: Value, limit: int) -> None:
    """Add a value. If there are then more than `limit` values, drop the least recently used one."""
    entries[key] = value
    if len(entries) > limit:
        del entries[next(iter(entries))]
