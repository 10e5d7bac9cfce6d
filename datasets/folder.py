"""Anyone's own PNG and JPEG images: `folder:PATH` reads every one below PATH.

Source: the user

A file is a source of its own; every fifth one, in the order of a hash of its relative path, is public, the others are the
victims'. The largest centred square of an image is scaled to S by area averaging where that makes it smaller, bicubic where
larger.

Images (3, S, S) float32 in [-1, 1]; grey images become three equal channels, transparency is laid on black.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmark.errors import UserError, first_line
from benchmark.images import centred_square
from benchmark.plugins import Dataset, Picture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Folder(Dataset):
    """Parameters.

    Attributes:
        path: the folder.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("the path is empty")

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different files."""
        files = [file for i, file in enumerate(self._files()) if i % EVERY]
        if count > len(files):
            raise UserError(f"folder '{self.path}' has {len(files)} images for victims, not {count}")
        order = torch.randperm(len(files), generator=generator)[:count]
        return [self._picture(files[i], size) for i in order.tolist()]

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: every fifth file."""
        return [self._picture(file, size) for file in self._files()[::EVERY]]

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash over the files' relative paths and contents."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self._files():
            digest.update(os.fsencode(file.relative_to(self.path)) + b"\0" + _content(file))
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        """One file of each content: a copy would otherwise be public and private at once, or count twice."""
        root = Path(self.path)
        if not root.is_dir():
            raise UserError(f"folder '{self.path}' does not exist")
        found = [file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        ordered = sorted(found, key=lambda file: hashlib.blake2b(os.fsencode(file.relative_to(root))).digest())
        files = list({_content(file): file for file in reversed(ordered)}.values())[::-1]
        if len(files) < 2:
            kinds = "one PNG or JPEG image" if files else "no PNG or JPEG image"
            raise UserError(f"folder '{self.path}' holds {kinds}; it takes two different ones, a public and a victim's")
        return files

    def _picture(self, file: Path, size: int) -> Picture:
        try:
            with Image.open(file) as image:
                rgb = _colour(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read image {_printable(file)}: {first_line(error)}") from error
        if rgb.mode == "RGBA":
            rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "black"), rgb).convert("RGB")
        return Picture(centred_square(rgb, size), _printable(file.relative_to(self.path)))


def _content(file: Path) -> bytes:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
    except OSError as error:
        raise UserError(f"cannot read image {_printable(file)}: {error.strerror}") from error


def _printable(path: Path) -> str:
    """A path as text, also where its name is no valid text."""
    return os.fsencode(path).decode(errors="replace")


def _colour(image: Image.Image) -> Image.Image:
    """The picture in RGB, or RGBA where it is transparent; Pillow itself would clip 16-bit grey to 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA") else "RGB")
