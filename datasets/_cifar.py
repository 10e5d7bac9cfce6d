"""CIFAR-10 and CIFAR-100, read from their binary files or from Parquet, never from pickles. Not a plugin.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images" (cs.toronto.edu/~kriz/cifar.html)

A row of a binary file holds the labels, one byte each, and then the red, green and blue planes of 32x32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.image_files import content_hash, files_below, reason
from benchmark.base.paths import printable
from benchmark.datasets._parquet import parquet_part
from benchmark.datasets._parts import OnDisk, Part, dataset_folder, last_change

PIXELS = 3 * 32 * 32
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Layout:
    """Names and format of the files of one CIFAR data set.

    Attributes:
        name: name of the data set.
        label_bytes: number of labels, one byte each, in front of each image.
        folder: folder of the binary files, inside the folder of the data set.
        train: names of the binary files of the training part.
        test: names of the binary files of the test part.
        repository: repository of the Parquet files on the Hugging Face hub.
    """

    name: str
    label_bytes: int
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repository: str

    def part(self, path: str, split: str) -> Part:
        """Return the part `train` or `test`.

        Args:
            path: folder of the data, empty for the default folder.
            split: `train` or `test`.

        Raises:
            UserError: the part is missing or damaged.
        """
        files = self._files(path, split)
        if files[0].suffix == ".parquet":
            return parquet_part(self.name, files, split)
        images = _read_images(tuple((file, last_change(file)) for file in files), self.label_bytes, self.name)
        return Part(self.name, [f"{split}-{i}" for i in range(len(images))], lambda i: Image.fromarray(images[i]))

    def fingerprint(self, path: str) -> str:
        """Return a hash of the contents of the files that are read. Other files in the folder do not change it."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            for file in self._files(path, split):
                digest.update(content_hash(file))
        return digest.hexdigest()

    def _files(self, path: str, split: str) -> Sequence[Path]:
        """Return the files of a part: the binary files if all of them exist, otherwise the Parquet files."""
        root = dataset_folder(self.name, path, self._download_hint)
        for folder in (root / self.folder, root):
            binaries = [folder / name for name in (self.train if split == "train" else self.test)]
            if all(file.is_file() for file in binaries):
                return binaries
        tables = [file for file in files_below(root) if file.suffix == ".parquet" and file.name.startswith(split)]
        if not tables:
            raise UserError(f"data set '{self.name}': {printable(root)} holds no {split} part; {self._download_hint}")
        return tables

    @property
    def _download_hint(self) -> str:
        return (
            f"put the binary version of cs.toronto.edu/~kriz/cifar.html there, or the Parquet files by "
            f"'hf download {self.repository} --repo-type dataset --local-dir FOLDER', or name a folder with {self.name}:FOLDER"
        )


class CIFAR(OnDisk):
    """A CIFAR data set. Victims are test images, public images are training images."""

    layout: ClassVar[Layout]
    max_public: ClassVar[int] = 2000
    path: str

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash of the contents of the files."""
        return self.layout.fingerprint(self.path)

    def _private(self) -> Part:
        return self.layout.part(self.path, "test")

    def _public(self) -> Part:
        return self.layout.part(self.path, "train")


@cache
def _read_images(files: tuple[tuple[Path, int], ...], label_bytes: int, name: str) -> NDArray[np.uint8]:
    """Return the images (N, 32, 32, 3) of files. Each file comes with the time of its last change, the key of the cache."""
    parts = [_images_of(file, label_bytes, name) for file, _ in files]
    return np.ascontiguousarray(np.concatenate(parts).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _images_of(file: Path, label_bytes: int, name: str) -> NDArray[np.uint8]:
    """Return the images (N, 3 * 32 * 32) of one file."""
    try:
        raw = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"data set '{name}': cannot read {printable(file)}: {reason(error)}") from error
    if not len(raw) or len(raw) % (label_bytes + PIXELS):
        raise UserError(f"data set '{name}': {printable(file)} is damaged: {len(raw)} bytes are not a whole number of images")
    return raw.reshape(-1, label_bytes + PIXELS)[:, label_bytes:]
