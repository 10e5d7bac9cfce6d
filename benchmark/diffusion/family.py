"""A family of networks: how the checkpoints of one class are read and built."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from benchmark.diffusion import families as folder
from benchmark.diffusion.denoiser import Denoiser

if TYPE_CHECKING:
    from diffusers import ModelMixin

CHANNELS = 3
"""Channels of an image."""

SIZES = range(8, 1025)
"""Sides of images, in pixels."""


class Family(ABC):
    """Networks of one class. A family is one file in `families/`; its variable `FAMILY` holds the family.

    Attributes:
        name: the class that config.json names.
        denoiser: the function of (x_t, t) that client and attacker hold, from a network and what it is fed.
    """

    name: ClassVar[str]
    denoiser: ClassVar[type[Denoiser]]

    @abstractmethod
    def size(self, config: Mapping[str, object], what: str) -> tuple[int, int]:
        """Check a configuration, and return the side of its images and the number that sides are multiples of.

        Raises:
            UserError: it is no unconditional network from images to images. `what` names it.
        """

    @abstractmethod
    def network(self, config: Mapping[str, object]) -> ModelMixin:
        """Return the network that a configuration describes, with random weights."""

    def renamed(self, tensor: str) -> str:
        """Return today's name of a tensor that older versions saved under another one."""
        return tensor


def families() -> dict[str, Family]:
    """Return all families, by name."""
    modules = [importlib.import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__)]
    return {module.FAMILY.name: module.FAMILY for module in modules}
