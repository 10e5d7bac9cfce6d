"""LSUN bedrooms, from the lmdb folders that LSUN publishes: `lsun_bedroom`, or `lsun_bedroom:PATH`.

Source: Yu, Seff, Zhang, Song, Funkhouser and Xiao 2015 (arXiv 1506.03365); github fyu/lsun

Victims are the 300 images of `bedroom_val_lmdb`, public ones come from `bedroom_train_lmdb`. The data are never downloaded, see
`_parts`. Read by the package lmdb: torchvision's reader keeps the list of keys as a pickle.

Images (3, S, S) float32 in [-1, 1], at least 256 on the shorter side at their own size; the largest centred square, area
averaging to S.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from benchmark.datasets._parts import OnDisk, Part, home, listing
from PIL import Image

from benchmark.errors import UserError, first_line
from benchmark.plugins import Dataset

TRAINING = 10_000
HOW = (
    "put bedroom_train_lmdb and bedroom_val_lmdb there (github.com/fyu/lsun has the script that fetches them), "
    "or name a folder with lsun_bedroom:FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class LSUNBedroom(OnDisk, Dataset):
    """Parameters.

    Attributes:
        path: the folder of the data, empty for the usual place.
    """

    path: str = ""

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: relative names and sizes of the files."""
        root = home("lsun_bedroom", self.path, HOW)
        return listing(root.rglob("*.mdb"), root)

    def _private(self) -> Part:
        return self._part("val")

    def _public(self) -> Part:
        return self._part("train")

    def _part(self, split: str) -> Part:
        folder = home("lsun_bedroom", self.path, HOW) / f"bedroom_{split}_lmdb"
        if not folder.is_dir():
            raise UserError(f"data set 'lsun_bedroom': there is no {folder}; {HOW}")
        folder = folder.resolve()  # lmdb opens a folder once in a process, by whatever name
        keys = _keys(folder)
        return Part("lsun_bedroom", [key.decode(errors="replace") for key in keys], lambda i: _image(folder, keys[i]))


@cache
def _keys(folder: Path) -> tuple[bytes, ...]:
    """The first keys in the order of the data base, which is that of their hashes."""
    base = _open(folder)
    try:
        with base.begin() as transaction:
            return tuple(islice(transaction.cursor().iternext(values=False), TRAINING))
    except Exception as error:
        raise UserError(f"data set 'lsun_bedroom': cannot read {folder}: {first_line(error)}") from error


def _image(folder: Path, key: bytes) -> Image.Image:
    with _open(folder).begin() as transaction:
        return Image.open(io.BytesIO(transaction.get(key)))


@cache
def _open(folder: Path):  # type: ignore[no-untyped-def]  # lmdb has no types
    try:
        import lmdb
    except ImportError:
        raise UserError("data set 'lsun_bedroom' needs the package lmdb: python -m pip install lmdb") from None
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"data set 'lsun_bedroom': cannot read {folder}: {first_line(error)}") from error
