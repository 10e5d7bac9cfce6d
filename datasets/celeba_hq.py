"""CelebA-HQ faces, from a folder of image files or from Parquet: `celeba_hq`, or `celeba_hq:PATH`.

Source: Karras, Aila, Laine and Lehtinen 2018 (arXiv 1710.10196)

Every fifth image, in the order of a hash of its name, is public, the others are the victims'; other files make another split.
The files do not say who an image
shows, so each counts as a source of its own; one person may be on both sides. The data are never downloaded, see `_parts`.

Images (3, S, S) float32 in [-1, 1], 1024x1024 at their own size; area averaging to S.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.datasets._parts import OnDisk, Part, home, listing, parquet_part
from PIL import Image

from benchmark.errors import UserError
from benchmark.plugins import Dataset

EVERY = 5
SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
HOW = (
    "put the 30,000 image files there, or Parquet files with a column of images "
    "(by 'hf download korexyz/celeba-hq-256x256 --repo-type dataset --local-dir FOLDER'), "
    "or name a folder with celeba_hq:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class CelebAHQ(OnDisk, Dataset):
    """Parameters.

    Attributes:
        path: the folder of the data, empty for the usual place.
    """

    path: str = ""

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: relative names and sizes of the files."""
        root = home("celeba_hq", self.path, HOW)
        return listing([file for file in root.rglob("*") if file.is_file()], root)

    def _private(self) -> Part:
        return self._whole().split(EVERY)[1]

    def _public(self) -> Part:
        return self._whole().split(EVERY)[0]

    def _whole(self) -> Part:
        root = home("celeba_hq", self.path, HOW)
        images = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
        if images:
            return Part("celeba_hq", [str(file.relative_to(root)) for file in images], lambda i: Image.open(images[i]))
        tables = sorted(root.rglob("*.parquet"))
        if not tables:
            raise UserError(f"data set 'celeba_hq': {root} holds neither images nor Parquet files; {HOW}")
        return parquet_part("celeba_hq", tables, "row")
