"""The user's own images: `folder:PATH` reads every image below PATH in any raster format that Pillow reads.

Source: the user

Each file is its own source, and copies of one file count once. In the order of a hash of their contents, every fifth image is
public. The others are for victims. So the split depends on the images, and not on the names of files or folders. Links are
followed. Names that begin with a dot are skipped.

Images (3, S, S) float32 in [-1, 1]. The largest centred square of an image is scaled to S, down by area averaging or up with
bicubic interpolation. Images are turned upright by their EXIF orientation. Grey images become three equal channels,
transparency is laid on black, and an animation gives its first frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from benchmark.base.errors import UserError
from benchmark.base.image_files import content_hash, files_below, is_image, read_image, skipped_files_remark
from benchmark.base.images import centred_square
from benchmark.base.paths import printable, user_path
from benchmark.datasets._parts import existing_folder
from benchmark.plugins import Contents, Dataset, Picture

PUBLIC_EVERY_NTH = 5


@dataclass(frozen=True, kw_only=True)
class Folder(Dataset):
    """Hyper-parameters.

    Attributes:
        path: folder of the images.
    """

    location: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("the path is empty")

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: the images of `count` different files."""
        files = list(self._split()[1].values())
        if count > len(files):
            raise UserError(f"{self._name} has {len(files)} images for victims, not {count}")
        order = torch.randperm(len(files), generator=generator)[:count]
        return [self._picture(files[i], size) for i in order.tolist()]

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the images of every fifth file."""
        return [self._picture(file, size) for file in self._split()[0].values()]

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash of the contents of the image files."""
        return hashlib.blake2b("".join(self._images()).encode(), digest_size=16).hexdigest()

    def contents(self) -> Contents:
        """See `Dataset.contents`: one hash per file, of its bytes."""
        public, private = (frozenset(content[:16] for content in part) for part in self._split())
        return Contents(public, private)

    def remarks(self) -> tuple[str, ...]:
        """See `Dataset.remarks`: how many files are not images, and how many are copies."""
        files = files_below(self._root())
        others = _others(files)
        copies = len(files) - len(others) - len(self._images())
        remarks = [f"{self._name}: {skipped_files_remark(others, len(files))}"] if others else []
        if copies:
            what = "is a copy of another and was" if copies == 1 else "are copies of others and were"
            remarks.append(f"{self._name}: {copies} of {len(files)} files {what} passed over")
        return tuple(remarks)

    @property
    def _name(self) -> str:
        return f"folder '{printable(self.path)}'"

    def _root(self) -> Path:
        return existing_folder(user_path(self.path), f"{self._name} does not exist")

    def _images(self) -> dict[str, Path]:
        """Return one file per content, by the hash of the content and in the order of the hashes.

        Otherwise a copy could be both public and private, or count twice.
        """
        files = files_below(self._root())
        by_content = {content_hash(file).hex(): file for file in reversed(files) if is_image(file)}
        if len(by_content) < 2:
            kinds, others = "one image" if by_content else "no image that Pillow reads", _others(files)
            hint = f" ({skipped_files_remark(others, len(files))})" if others else ""
            raise UserError(f"{self._name} holds {kinds}; it needs two different images, one public and one private{hint}")
        return dict(sorted(by_content.items()))

    def _split(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Return the public and the private images."""
        images = list(self._images().items())
        return dict(images[::PUBLIC_EVERY_NTH]), dict(image for i, image in enumerate(images) if i % PUBLIC_EVERY_NTH)

    def _picture(self, file: Path, size: int) -> Picture:
        return Picture(centred_square(read_image(file, printable(file)), size), printable(file.relative_to(self._root())))


def _others(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if not is_image(file)]
