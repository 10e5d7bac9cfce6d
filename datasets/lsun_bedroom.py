"""LSUN bedrooms, from the lmdb folders that LSUN publishes: `lsun_bedroom`, or `lsun_bedroom:PATH`.

Source: Yu, Seff, Zhang, Song, Funkhouser and Xiao 2015 (arXiv 1506.03365); github fyu/lsun

Victims are the 300 images of `bedroom_val_lmdb`. Public images come from `bedroom_train_lmdb`. The benchmark never downloads
the data, see `_parts`. It reads them with the package lmdb, because the reader of torchvision stores the list of keys as a
pickle.

Images (3, S, S) float32 in [-1, 1], originally at least 256 on the shorter side. The largest centred square is scaled to S by
area averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.base.paths import printable
from benchmark.datasets._lmdb import data_file, lmdb_part
from benchmark.datasets._parts import OnDisk, Part, dataset_folder, ends_fingerprint, existing_folder
from benchmark.plugins import Dataset

SPLITS = ("train", "val")
MAX_IMAGES = 10_000
DOWNLOAD_HINT = (
    "put bedroom_train_lmdb and bedroom_val_lmdb there (github.com/fyu/lsun has the script that fetches them), "
    "or name a folder with lsun_bedroom:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class LSUNBedroom(OnDisk, Dataset):
    """Hyper-parameters.

    Attributes:
        path: folder of the data, empty for the default folder.
    """

    path: str = ""

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: a hash of relative paths, sizes and ends of the files that are read."""
        return ends_fingerprint(
            [data_file(self._folder(split)) for split in SPLITS], dataset_folder("lsun_bedroom", self.path, DOWNLOAD_HINT)
        )

    def _private(self) -> Part:
        return lmdb_part("lsun_bedroom", self._folder("val"), MAX_IMAGES)

    def _public(self) -> Part:
        return lmdb_part("lsun_bedroom", self._folder("train"), MAX_IMAGES)

    def _folder(self, split: str) -> Path:
        folder = dataset_folder("lsun_bedroom", self.path, DOWNLOAD_HINT) / f"bedroom_{split}_lmdb"
        return existing_folder(folder, f"data set 'lsun_bedroom': there is no {printable(folder)}; {DOWNLOAD_HINT}")
