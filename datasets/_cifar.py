"""CIFAR-10 and CIFAR-100 from their binary files or from Parquet; never from pickles. Not a plugin.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (cs.toronto.edu/~kriz/cifar.html)

A row of a binary file is the labels, one byte each, and then the red, green and blue planes of 32x32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from benchmark.datasets._parts import OnDisk, Part, home, parquet_part
from numpy.typing import NDArray
from PIL import Image

from benchmark.errors import UserError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Where a CIFAR lies.

    Attributes:
        name: of the data set.
        label_bytes: labels in front of each image.
        folder: of the binary files, below the data set's own.
        train: the binary files of the training part.
        test: those of the test part.
        repository: of the Parquet files on the Hugging Face hub.
    """

    name: str
    label_bytes: int
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repository: str

    def part(self, path: str, split: str) -> Part:
        """The part `train` or `test`.

        Raises:
            UserError: it is missing or damaged.
        """
        root = self._home(path)
        binaries = self._binaries(root, split)
        if all(file.is_file() for file in binaries):
            images = _read(tuple((file, file.stat().st_mtime_ns) for file in binaries), self.label_bytes, self.name)
            return Part(self.name, [f"{split}-{i}" for i in range(len(images))], lambda i: Image.fromarray(images[i]))
        tables = self._tables(root, split)
        if not tables:
            raise UserError(f"data set '{self.name}': {root} holds no {split} part; {self._how}")
        return parquet_part(self.name, tables, split)

    def fingerprint(self, path: str) -> str:
        """A hash of the files' contents."""
        root = self._home(path)
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted([*root.rglob("*.bin"), *root.rglob("*.parquet")]):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
        return digest.hexdigest()

    def _home(self, path: str) -> Path:
        return home(self.name, path, self._how)

    def _binaries(self, root: Path, split: str) -> list[Path]:
        folder = root / self.folder if (root / self.folder).is_dir() else root
        return [folder / file for file in (self.train if split == "train" else self.test)]

    def _tables(self, root: Path, split: str) -> Sequence[Path]:
        return sorted(root.rglob(f"{split}*.parquet"))

    @property
    def _how(self) -> str:
        return (
            f"put the binary version of cs.toronto.edu/~kriz/cifar.html there, or the Parquet files by "
            f"'hf download {self.repository} --repo-type dataset --local-dir FOLDER', or name a folder with {self.name}:FOLDER"
        )


class CIFAR(OnDisk):
    """Victims are test images, public ones training images."""

    layout: ClassVar[Layout]
    shown: ClassVar[int] = 2000
    path: str

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash of the files' contents."""
        return self.layout.fingerprint(self.path)

    def _private(self) -> Part:
        return self.layout.part(self.path, "test")

    def _public(self) -> Part:
        return self.layout.part(self.path, "train")


@cache
def _read(files: tuple[tuple[Path, int], ...], label_bytes: int, name: str) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) from files, each with the time of its last change."""
    rows = []
    for file, _ in files:
        raw = np.fromfile(file, dtype=np.uint8)
        if not len(raw) or len(raw) % (label_bytes + PIXELS):
            raise UserError(f"data set '{name}': {file.name} is damaged: {len(raw)} bytes are no whole number of images")
        rows.append(raw.reshape(-1, label_bytes + PIXELS)[:, label_bytes:])
    return np.ascontiguousarray(np.concatenate(rows).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
