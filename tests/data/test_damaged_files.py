"""Damaged files of the published data sets, each refused in one sentence that names the file."""

import io
import multiprocessing
import os
import re
import signal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.datasets import _lmdb
from benchmark.datasets.celeba_hq import CelebAHQ
from benchmark.datasets.cifar10 import CIFAR10
from benchmark.datasets.cifar100 import CIFAR100
from benchmark.datasets.folder import Folder
from benchmark.datasets.lsun_bedroom import LSUNBedroom
from tests.data.conftest import encoded, picture, write_parquet


def refused(dataset, *words):
    """The message of a data set that refuses to give its images, which must be one line with these words."""
    with pytest.raises(UserError) as error:
        dataset.victims(len(dataset._private().sources) if hasattr(dataset, "_private") else 8, 16, stream(0, "v"))
        dataset.training(16)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def harmed(file, harm):
    data = file.read_bytes()
    garbage = np.random.default_rng([*file.name.encode()]).bytes(len(data) - 1)
    file.write_bytes(data[: len(data) // 2 - 1] if harm == "truncated" else garbage)


@pytest.mark.parametrize("harm", ["truncated", "garbage"])
@pytest.mark.parametrize("name", ["folder", "celeba_hq", "cifar10", "cifar100", "lsun_bedroom", "parquet"])
def test_every_loader_names_the_file_that_is_damaged(name, harm, request, tmp_path, rng):  # T6
    if name in ("folder", "parquet"):
        if name == "folder":
            for i in range(10):
                Image.fromarray(picture(rng, 40)).save(tmp_path / f"{i}.webp")
        else:
            write_parquet(tmp_path / "train-0.parquet", [picture(rng, 32) for _ in range(10)], "image")
        root = tmp_path
    else:
        given = request.getfixturevalue(name)
        root = given[0] if isinstance(given, tuple) else given
    cls, pattern = {
        "folder": (Folder, "*.webp"),
        "celeba_hq": (CelebAHQ, "*.jpg"),
        "parquet": (CelebAHQ, "*.parquet"),
        "cifar10": (CIFAR10, "*/*.bin"),
        "cifar100": (CIFAR100, "*/*.bin"),
        "lsun_bedroom": (LSUNBedroom, "*/data.mdb"),
    }[name]
    files = sorted(root.glob(pattern))
    for file in files:
        harmed(file, harm)
    message = refused(cls(path=str(root)))
    assert any(str(file) in message for file in files)


ROWS = [None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": None}, {"bytes": b"no picture", "path": ""}]


def table(path, rows, kind=None):
    """A Parquet file with these values of the column's `bytes`."""
    kind = kind or pyarrow.binary()
    column = pyarrow.array(rows, type=pyarrow.struct([("bytes", kind), ("path", pyarrow.string())]))
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), path, row_group_size=4)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_without_an_image_is_named_with_its_file(tmp_path, rng, row):  # T6
    good = {"bytes": encoded(picture(rng, 16), "PNG"), "path": ""}
    table(tmp_path / "train-0.parquet", [good] * 5)
    table(tmp_path / "train-1.parquet", [good] * 5 + [row] + [good] * 3)
    message = refused(CelebAHQ(path=str(tmp_path)), "row 5 of ", str(tmp_path / "train-1.parquet"))
    assert "0x" not in message


def test_a_bomb_in_a_table_is_named(tmp_path, monkeypatch):  # T6
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    table(tmp_path / "train-0.parquet", [{"bytes": buffer.getvalue(), "path": ""}] * 6)
    refused(CelebAHQ(path=str(tmp_path)), "exceeds limit", "row ", "train-0.parquet")


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.int64(), pyarrow.list_(pyarrow.uint8())])
def test_a_column_of_the_wrong_type_is_refused(tmp_path, kind):  # T6
    value = {"string": "text", "int64": 1}.get(str(kind), [1, 2])
    table(tmp_path / "train-0.parquet", [{"bytes": value, "path": ""}] * 6, kind)
    refused(CelebAHQ(path=str(tmp_path)), "train-0.parquet", "column 'image'", "not the bytes of images")


def test_files_that_differ_in_their_columns_are_refused(tmp_path, rng):  # T6
    for i, column in enumerate(("image", "img")):
        write_parquet(tmp_path / f"train-{i}.parquet", [picture(rng, 16) for _ in range(6)], column)
    refused(CelebAHQ(path=str(tmp_path)), "train-1.parquet has no column of images 'image'")
    pyarrow.parquet.write_table(pyarrow.table({"image": [1, 2]}), tmp_path / "train-1.parquet")
    refused(CelebAHQ(path=str(tmp_path)), "train-1.parquet has no column of images 'image'")


def test_a_damaged_row_group_is_named(tmp_path, rng):  # T6
    file = tmp_path / "train-0.parquet"
    write_parquet(file, [picture(rng, 32) for _ in range(10)], "image")
    data = bytearray(file.read_bytes())
    data[4:400] = b"\xff" * 396
    file.write_bytes(data)
    refused(CelebAHQ(path=str(tmp_path)), "cannot read row ", str(file))


def test_tables_without_rows_are_refused(tmp_path):  # T6
    table(tmp_path / "train-0.parquet", [])
    with pytest.raises(UserError, match="has no public images"):
        CelebAHQ(path=str(tmp_path)).training(16)
    with pytest.raises(UserError, match="has 0 images for victims"):
        CelebAHQ(path=str(tmp_path)).victims(1, 16, stream(0, "v"))


def test_a_halved_base_is_refused_and_ends_nothing(lsun_bedroom):  # R5
    file = lsun_bedroom / "bedroom_val_lmdb" / "data.mdb"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(LSUNBedroom(path=str(lsun_bedroom)), "lsun_bedroom", str(file), "the file is cut off")


def test_a_base_that_ends_its_reader_is_refused(lsun_bedroom, tmp_path, monkeypatch):  # R5
    trial = tmp_path / "trial.py"
    trial.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGBUS)\n")
    monkeypatch.setattr(_lmdb, "TRIAL", trial)
    refused(LSUNBedroom(path=str(lsun_bedroom)), "data.mdb", signal.SIGBUS.name)
    trial.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(_lmdb, "MAX_TRIAL_SECONDS", 0.2)
    refused(LSUNBedroom(path=str(lsun_bedroom)), "data.mdb", "takes more than 0.2 seconds")


def answer(root, pipe):
    try:
        LSUNBedroom(path=str(root)).training(16)
    except UserError as error:
        pipe.send(str(error))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_pages_of_a_base_never_end_the_process(lsun_bedroom, seed):  # R5
    rng = np.random.default_rng(seed)
    file = lsun_bedroom / "bedroom_train_lmdb" / "data.mdb"
    data = bytearray(file.read_bytes())
    for place in rng.integers(0 if seed % 2 else 8192, len(data) - 8, 200):
        data[place : place + 8] = rng.bytes(8)
    file.write_bytes(data)
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=answer, args=(lsun_bedroom, there))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and here.poll()
    assert re.fullmatch(r"[^\n]*data\.mdb[^\n]*", here.recv())


def test_the_trial_of_a_base_imports_nothing_large():  # R5
    source = _lmdb.TRIAL.read_text()
    assert not re.search(r"import (torch|numpy|benchmark)|from benchmark", source)


def test_a_value_that_is_no_image_is_named_by_its_key(tmp_path, rng):  # T6
    import lmdb

    for split in ("train", "val"):
        with lmdb.open(str(tmp_path / f"bedroom_{split}_lmdb")) as base, base.begin(write=True) as transaction:
            transaction.put(b"good", encoded(picture(rng, 16), "WEBP"))
            transaction.put(b"the-key", b"no picture")
    refused(LSUNBedroom(path=str(tmp_path)), "the-key in ", "data.mdb", "not an image")


def test_other_files_in_the_folder_do_not_change_the_fingerprint(cifar10, celeba_hq, lsun_bedroom):  # F4
    root, _, _ = cifar10  # all three lie in this folder, each in its own form
    datasets = [CIFAR10(path=str(root)), LSUNBedroom(path=str(root))]
    before = [dataset.fingerprint() for dataset in datasets]
    (root / "other.bin").write_bytes(b"x")
    (root / "more.mdb").write_bytes(b"x")
    (root / "bedroom_val_lmdb" / "lock.mdb").write_bytes(b"changed")
    faces = CelebAHQ(path=str(root))
    first = faces.fingerprint()
    (root / "README.md").write_text("x")
    assert [dataset.fingerprint() for dataset in datasets] == before and faces.fingerprint() == first
    assert "README" not in first and any(".md" in remark for remark in faces.remarks())


@pytest.mark.parametrize("name", ["cifar10", "celeba_hq", "lsun_bedroom"])
def test_another_folder_is_the_same_data_set(name, request, tmp_path_factory):  # F4
    import shutil

    given = request.getfixturevalue(name)
    root = given[0] if isinstance(given, tuple) else given
    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(root, other)
    cls = {"cifar10": CIFAR10, "celeba_hq": CelebAHQ, "lsun_bedroom": LSUNBedroom}[name]
    one, two = cls(path=str(root)), cls(path=os.fspath(other))
    assert one.fingerprint() == two.fingerprint() and cls.location == {"path"}
    a, b = (dataset.victims(3, 16, stream(0, "v")) for dataset in (one, two))
    assert all((x.image == y.image).all() and x.source == y.source for x, y in zip(a, b, strict=True))


def test_the_usual_folder_is_expanded(cifar10, monkeypatch):  # T4
    root, _, _ = cifar10
    data = root / "data"
    data.mkdir()
    (root / "cifar-10-batches-bin").rename(data / "cifar10")
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("GIDBENCH_DATA", "~/data")
    assert CIFAR10().fingerprint() == CIFAR10(path="~/data/cifar10").fingerprint()
    monkeypatch.setenv("GIDBENCH_DATA", "~nosuchuser/x")
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        CIFAR10().fingerprint()
