"""CIFAR-10, from its binary files or from Parquet: `cifar10`, or `cifar10:PATH`.

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
class CIFAR10(CIFAR, Dataset):
    """Hyper-parameters.

    Attributes:
        path: folder of the data, empty for the default folder.
    """

    layout: ClassVar[Layout] = Layout(
        name="cifar10",
        label_bytes=1,
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        repository="uoft-cs/cifar10",
    )

    path: str = ""
