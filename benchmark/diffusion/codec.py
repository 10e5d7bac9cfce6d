"""From images to what a model diffuses, and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Clients encode before they train; the bench decodes what an attack rebuilt before it is judged."""

    def encode(self, images: Tensor) -> Tensor:
        """Return what the model diffuses, from images (N, C, H, W) in [-1, 1]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images behind what `encode` returns."""


class Pixels:
    """The codec of models that diffuse images: the identity."""

    def encode(self, images: Tensor) -> Tensor:
        """See `Codec.encode`."""
        return images

    def decode(self, codes: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return codes
