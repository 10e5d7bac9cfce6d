"""A part of a data set on disk: how many images it has, the source of each, and how to read one. Not a plugin.

The default folder of a data set NAME is $GIDBENCH_DATA/NAME, or ~/.cache/gidbench/NAME if GIDBENCH_DATA is not set. The user
may name another folder (`NAME:PATH`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.image_files import reason
from benchmark.base.images import centred_square
from benchmark.base.paths import printable, user_path
from benchmark.plugins import Picture

END_BYTES = 4096
"""Number of bytes at each end of a large file that enter its fingerprint."""


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one part. An image is read only when it is needed.

    Attributes:
        dataset: name of the data set, for messages.
        sources: the source of each image.
        load: function that returns image number i in RGB, or raises a `UserError` that names it.
    """

    dataset: str
    sources: Sequence[str]
    load: Callable[[int], Image.Image]

    def pictures(self, indices: Sequence[int], size: int) -> list[Picture]:
        """Return the images with these numbers, each (3, size, size).

        Raises:
            UserError: an image cannot be read.
        """
        return [Picture(centred_square(self.load(i), size), self.sources[i]) for i in indices]

    def first(self, count: int, size: int) -> list[Picture]:
        """Return the first `count` images, or all if there are fewer.

        Raises:
            UserError: there is no image, or an image cannot be read.
        """
        if not self.sources:
            raise UserError(f"data set '{self.dataset}' has no public images")
        return self.pictures(range(min(count, len(self.sources))), size)

    def draw(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """Return `count` different images in a random order.

        Raises:
            UserError: there are fewer than `count` images, or an image cannot be read.
        """
        if count > len(self.sources):
            raise UserError(f"data set '{self.dataset}' has {len(self.sources)} images for victims, not {count}")
        return self.pictures(torch.randperm(len(self.sources), generator=generator)[:count].tolist(), size)

    def all(self, size: int) -> torch.Tensor:
        """Return all images, (N, 3, size, size)."""
        return torch.stack([picture.image for picture in self.first(len(self.sources), size)])

    def split(self, every: int) -> tuple[Part, Part]:
        """Return a public and a private part. In the order of a hash of the sources, every `every`-th image is public."""
        order = sorted(range(len(self.sources)), key=lambda i: hashlib.blake2b(os.fsencode(self.sources[i])).digest())
        return self._subset(order[::every]), self._subset([i for n, i in enumerate(order) if n % every])

    def _subset(self, chosen: Sequence[int]) -> Part:
        return Part(self.dataset, [self.sources[i] for i in chosen], lambda i: self.load(chosen[i]))


class OnDisk:
    """Base of data sets on disk: victims come from a private part, public images from another. Put it before `Dataset`.

    Attributes:
        max_public: largest number of public images that a grid uses. Training uses all of them.
    """

    location: ClassVar[frozenset[str]] = frozenset({"path"})
    max_public: ClassVar[int] = 1000

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different images of the private part."""
        return self._private().draw(count, size, generator)

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the first `max_public` images of the public part."""
        return self._public().first(self.max_public, size)

    def training(self, size: int) -> torch.Tensor:
        """See `Dataset.training`: the whole public part."""
        return self._public().all(size)

    def _private(self) -> Part:
        raise NotImplementedError

    def _public(self) -> Part:
        raise NotImplementedError


def dataset_folder(name: str, path: str, hint: str) -> Path:
    """Return the folder that holds the data set.

    Args:
        name: name of the data set.
        path: folder that the user named, empty for the default folder.
        hint: how to get the data; ends the message if the folder does not exist.

    Raises:
        UserError: the folder does not exist.
    """
    folder = user_path(path) if path else user_path(os.environ.get("GIDBENCH_DATA") or "~/.cache/gidbench") / name
    return existing_folder(folder, f"data set '{name}' is not on this machine: there is no folder {printable(folder)}; {hint}")


def existing_folder(folder: Path, missing: str) -> Path:
    """Return the folder, after a check that it exists.

    Raises:
        UserError: the folder does not exist (with the message `missing`), is a file, or cannot be reached.
    """
    try:
        if folder.is_dir():
            return folder
        raise UserError(f"{printable(folder)} is not a folder" if folder.exists() else missing)
    except OSError as error:
        raise UserError(f"cannot read folder {printable(folder)}: {reason(error)}") from error


def ends_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Return a fingerprint of large files without reading them completely.

    The fingerprint is a hash of each path relative to `root`, each size, and the first and last `END_BYTES` bytes of each file.
    It assumes that a change of an encoded image also changes its size or these bytes.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files):
        size = _state(file).st_size
        digest.update(os.fsencode(file.relative_to(root)) + f"\0{size}\0".encode() + _ends(file, size))
    return digest.hexdigest()


def _ends(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as stream:
            first = stream.read(END_BYTES)
            stream.seek(max(0, size - END_BYTES))
            return first + stream.read(END_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error


def last_change(file: Path) -> int:
    """Return the time of the last change of a file in nanoseconds.

    Raises:
        UserError: the file is missing.
    """
    return _state(file).st_mtime_ns


def _state(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error
