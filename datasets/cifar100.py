"""CIFAR-100, from its binary files or from Parquet: `cifar100`, or `cifar100:PATH`.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (cs.toronto.edu/~kriz/cifar.html)

Victims are images of the test part, public ones of the training part. The data are never downloaded, see `_parts`.

Images (3, S, S) float32 in [-1, 1], 32x32 at their own size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from benchmark.datasets._cifar import Layout

from benchmark.plugins import Dataset, Picture

LAYOUT = Layout(
    name="cifar100",
    label_bytes=2,
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    repository="uoft-cs/cifar100",
)
PUBLIC = 2000
"""Training images that stand for the public in a grid; a model is trained on all of them."""


@dataclass(frozen=True, kw_only=True)
class CIFAR100(Dataset):
    """Parameters.

    Attributes:
        path: the folder of the data, empty for the usual place.
    """

    path: str = ""

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different test images."""
        return LAYOUT.part(self.path, "test").draw(count, size, generator)

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the first 2,000 training images."""
        return LAYOUT.part(self.path, "train").first(PUBLIC, size)

    def training(self, size: int) -> torch.Tensor:
        """See `Dataset.training`: every training image."""
        return LAYOUT.part(self.path, "train").all(size)

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`."""
        return LAYOUT.fingerprint(self.path)
