"""CIFAR-100, from its binary files or from Parquet: `cifar100`, or `cifar100:PATH`.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (cs.toronto.edu/~kriz/cifar.html)

Victims are images of the test part, public images are from the training part. The benchmark never downloads the data, see
`_parts`.

Images (3, S, S) float32 in [-1, 1], originally 32x32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.datasets._cifar import CIFAR, Layout
from benchmark.plugins import Dataset


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFAR, Dataset):
    """Hyper-parameters.

    Attributes:
        path: folder of the data, empty for the default folder.
    """

    layout: ClassVar[Layout] = Layout(
        name="cifar100",
        label_bytes=2,
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        repository="uoft-cs/cifar100",
    )

    path: str = ""
