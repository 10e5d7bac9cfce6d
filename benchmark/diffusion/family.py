"""The interface of a family: it reads and builds the networks of one class."""

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
    """Networks of one class. Each family is one file in `families/`, whose variable `FAMILY` holds an instance.

    Attributes:
        name: name of the class in config.json.
        denoiser: class that wraps a network of the family as a function of (x_t, t).
    """

    name: ClassVar[str]
    denoiser: ClassVar[type[Denoiser]]

    @abstractmethod
    def size(self, config: Mapping[str, object], what: str) -> tuple[int, int]:
        """Check a configuration, and return the image size and the stride.

        Args:
            config: content of config.json.
            what: name of the model in error messages.

        Returns:
            The side of the square images in pixels, and a number of which all sides must be multiples.

        Raises:
            UserError: the configuration does not describe an unconditional network from images to images.
        """

    @abstractmethod
    def network(self, config: Mapping[str, object]) -> ModelMixin:
        """Return the network that a configuration describes, with random weights."""

    def renamed(self, tensor: str) -> str:
        """Return the current name of a tensor that older versions saved under another name."""
        return tensor


def families() -> dict[str, Family]:
    """Return all families, by name."""
    modules = [importlib.import_module(f"{folder.__name__}.{found.name}") for found in pkgutil.iter_modules(folder.__path__)]
    return {module.FAMILY.name: module.FAMILY for module in modules}
