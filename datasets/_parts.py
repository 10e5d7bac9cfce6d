"""A part of a data set that lies on disk: how many images, where each comes from, and how to read one.

Not a plugin. The folder of a data set NAME is $GIDBENCH_DATA/NAME, or ~/.cache/gidbench/NAME, unless it is given (`NAME:PATH`).
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

ENDS = 4096
"""Bytes at each end of a large file that count in its fingerprint."""


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one part, read when they are asked for.

    Attributes:
        dataset: name of the data set, for messages.
        sources: where each image comes from.
        load: returns image number i in RGB, or raises a `UserError` that names it.
    """

    dataset: str
    sources: Sequence[str]
    load: Callable[[int], Image.Image]

    def pictures(self, indices: Sequence[int], size: int) -> list[Picture]:
        """Return these images at `size` x `size`.

        Raises:
            UserError: one cannot be read.
        """
        return [Picture(centred_square(self.load(i), size), self.sources[i]) for i in indices]

    def first(self, count: int, size: int) -> list[Picture]:
        """Return the first `count` images, or all where there are fewer.

        Raises:
            UserError: there is none, or one cannot be read.
        """
        if not self.sources:
            raise UserError(f"data set '{self.dataset}' has no public images")
        return self.pictures(range(min(count, len(self.sources))), size)

    def draw(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """Return `count` different images in a random order.

        Raises:
            UserError: there are not so many, or one cannot be read.
        """
        if count > len(self.sources):
            raise UserError(f"data set '{self.dataset}' has {len(self.sources)} images for victims, not {count}")
        return self.pictures(torch.randperm(len(self.sources), generator=generator)[:count].tolist(), size)

    def all(self, size: int) -> torch.Tensor:
        """Return every image, (N, 3, size, size)."""
        return torch.stack([picture.image for picture in self.first(len(self.sources), size)])

    def split(self, every: int) -> tuple[Part, Part]:
        """Return a public and a private part: every `every`-th image, in the order of a hash of the sources, is public."""
        order = sorted(range(len(self.sources)), key=lambda i: hashlib.blake2b(os.fsencode(self.sources[i])).digest())
        return self._only(order[::every]), self._only([i for n, i in enumerate(order) if n % every])

    def _only(self, chosen: Sequence[int]) -> Part:
        return Part(self.dataset, [self.sources[i] for i in chosen], lambda i: self.load(chosen[i]))


class OnDisk:
    """What data sets on disk share: victims from a private part, public images from another. Mixed in before `Dataset`.

    Attributes:
        shown: public images that stand for all of them in a grid; a model is trained on every one.
    """

    location: ClassVar[frozenset[str]] = frozenset({"path"})
    shown: ClassVar[int] = 1000

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different images of the private part."""
        return self._private().draw(count, size, generator)

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the first `shown` images of the public part."""
        return self._public().first(self.shown, size)

    def training(self, size: int) -> torch.Tensor:
        """See `Dataset.training`: the whole public part."""
        return self._public().all(size)

    def _private(self) -> Part:
        raise NotImplementedError

    def _public(self) -> Part:
        raise NotImplementedError


def home(name: str, path: str, how: str) -> Path:
    """Return the folder that holds the data set.

    Args:
        name: of the data set.
        path: the folder that the user named, empty for the usual place.
        how: how to get the data, the end of the message where there is no such folder.

    Raises:
        UserError: there is no such folder.
    """
    folder = user_path(path) if path else user_path(os.environ.get("GIDBENCH_DATA") or "~/.cache/gidbench") / name
    return existing_folder(folder, f"data set '{name}' is not on this machine: there is no folder {printable(folder)}; {how}")


def existing_folder(folder: Path, missing: str) -> Path:
    """Return the folder.

    Raises:
        UserError: it does not exist, with the message `missing`; it is a file or cannot be reached.
    """
    try:
        if folder.is_dir():
            return folder
        raise UserError(f"{printable(folder)} is not a folder" if folder.exists() else missing)
    except OSError as error:
        raise UserError(f"cannot read folder {printable(folder)}: {reason(error)}") from error


def listing(files: Iterable[Path], root: Path) -> str:
    """Return a fingerprint of large files without reading them whole.

    It is a hash of their paths relative to `root`, their sizes, and the first and last `ENDS` bytes of each: an encoded image
    that changes changes there too.

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
            first = stream.read(ENDS)
            stream.seek(max(0, size - ENDS))
            return first + stream.read(ENDS)
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error


def last_change(file: Path) -> int:
    """Return the time of a file's last change in nanoseconds.

    Raises:
        UserError: the file is missing.
    """
    return _state(file).st_mtime_ns


def _state(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error
