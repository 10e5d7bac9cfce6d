"""CelebA-HQ faces, from a folder of image files or from Parquet: `celeba_hq`, or `celeba_hq:PATH`.

Source: Karras, Aila, Laine and Lehtinen 2018 (arXiv 1710.10196)

The images are ordered by a hash of their file names (of their row numbers in Parquet files). Every fifth image is public, and
the others are for victims. Different files give a different split. The files do not say which person an image shows. Each image
therefore counts as its own source, and one person may be in both parts. The benchmark never downloads the data, see `_parts`.

Images (3, S, S) float32 in [-1, 1], originally 1024x1024; scaled to S by area averaging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.base.errors import UserError
from benchmark.base.image_files import files_below, is_image, read_image, skipped_files_remark
from benchmark.base.paths import printable
from benchmark.datasets._parquet import parquet_part
from benchmark.datasets._parts import OnDisk, Part, dataset_folder, ends_fingerprint
from benchmark.plugins import Dataset

PUBLIC_EVERY_NTH = 5
DOWNLOAD_HINT = (
    "put the 30,000 image files there, or Parquet files with a column of images "
    "(by 'hf download korexyz/celeba-hq-256x256 --repo-type dataset --local-dir FOLDER'), "
    "or name a folder with celeba_hq:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class CelebAHQ(OnDisk, Dataset):
    """Hyper-parameters.

    Attributes:
        path: folder of the data, empty for the default folder.
    """

    path: str = ""

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash of relative paths, sizes and ends of the files that are read."""
        return ends_fingerprint(self._files(), self._root())

    def remarks(self) -> tuple[str, ...]:
        """See `Dataset.remarks`: how many files beside the images are not images. Parquet files give no remark."""
        files = self._files()
        below = files_below(self._root())
        others = [file for file in below if not is_image(file)]
        return (f"data set 'celeba_hq': {skipped_files_remark(others, len(below))}",) if is_image(files[0]) and others else ()

    def _private(self) -> Part:
        return self._all().split(PUBLIC_EVERY_NTH)[1]

    def _public(self) -> Part:
        return self._all().split(PUBLIC_EVERY_NTH)[0]

    def _all(self) -> Part:
        files, root = self._files(), self._root()
        if not is_image(files[0]):
            return parquet_part("celeba_hq", files, "row")
        sources = [printable(file.relative_to(root)) for file in files]
        return Part("celeba_hq", sources, lambda i: read_image(files[i], printable(files[i])))

    def _files(self) -> Sequence[Path]:
        """Return the image files, or the Parquet files if there is no image file."""
        below = files_below(self._root())
        files = [file for file in below if is_image(file)] or [file for file in below if file.suffix == ".parquet"]
        if not files:
            raise UserError(
                f"data set 'celeba_hq': {printable(self._root())} holds neither images nor Parquet files; {DOWNLOAD_HINT}"
            )
        return files

    def _root(self) -> Path:
        return dataset_folder("celeba_hq", self.path, DOWNLOAD_HINT)
