"""CelebA-HQ faces, from a folder of image files or from Parquet: `celeba_hq`, or `celeba_hq:PATH`.

Source: Karras, Aila, Laine and Lehtinen 2018 (arXiv 1710.10196)

Every fifth image, in the order of a hash of its name, is public, the others are the victims'; other files make another split.
The files do not say who an image shows, so each counts as a source of its own; one person may be on both sides. The data are
never downloaded, see `_parts`.

Images (3, S, S) float32 in [-1, 1], 1024x1024 at their own size; area averaging to S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.base.errors import UserError
from benchmark.base.image_files import files_below, is_image, passed_over, read_image
from benchmark.base.paths import printable
from benchmark.datasets._parquet import parquet_part
from benchmark.datasets._parts import OnDisk, Part, home, listing
from benchmark.plugins import Dataset

EVERY = 5
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
        """See `Dataset.fingerprint`: relative names and sizes of the files that are read."""
        return listing(self._files(), self._root())

    def remarks(self) -> tuple[str, ...]:
        """See `Dataset.remarks`: files beside the images; beside Parquet files, the hub's own need no remark."""
        files = self._files()
        below = files_below(self._root())
        others = [file for file in below if not is_image(file)]
        return (f"data set 'celeba_hq': {passed_over(others, len(below))}",) if is_image(files[0]) and others else ()

    def _private(self) -> Part:
        return self._whole().split(EVERY)[1]

    def _public(self) -> Part:
        return self._whole().split(EVERY)[0]

    def _whole(self) -> Part:
        files, root = self._files(), self._root()
        if not is_image(files[0]):
            return parquet_part("celeba_hq", files, "row")
        sources = [printable(file.relative_to(root)) for file in files]
        return Part("celeba_hq", sources, lambda i: read_image(files[i], printable(files[i])))

    def _files(self) -> Sequence[Path]:
        """Return the image files, or the Parquet files where there is no image."""
        below = files_below(self._root())
        files = [file for file in below if is_image(file)] or [file for file in below if file.suffix == ".parquet"]
        if not files:
            raise UserError(f"data set 'celeba_hq': {printable(self._root())} holds neither images nor Parquet files; {HOW}")
        return files

    def _root(self) -> Path:
        return home("celeba_hq", self.path, HOW)
