"""Codecs convert images to the data that a model diffuses, and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """The interface of a codec. Clients encode images before training; reconstructions are decoded before they are judged."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the data that the model diffuses, from images (N, C, H, W) in [-1, 1]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images for codes as `encode` returns them."""


class Pixels:
    """The codec of models that diffuse images: the identity."""

    def encode(self, images: Tensor) -> Tensor:
        """See `Codec.encode`."""
        return images

    def decode(self, codes: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return codes
