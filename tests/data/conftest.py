"""Small data sets on disk, in the form in which the real ones are published."""

import io

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image


def picture(rng, size):
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(pixels, form):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(path, pictures, name):
    images = [{"bytes": encoded(pixels, "PNG"), "path": f"{i}.png"} for i, pixels in enumerate(pictures)]
    pyarrow.parquet.write_table(pyarrow.table({name: images, "label": [0] * len(images)}), path)


def write_cifar(path, pictures, label_bytes):
    rows = [bytes(label_bytes) + pixels.transpose(2, 0, 1).tobytes() for pixels in pictures]
    path.write_bytes(b"".join(rows))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cifar10(tmp_path, rng):
    """The folder, and the pictures of training and test part."""
    train, test = [picture(rng, 32) for _ in range(10)], [picture(rng, 32) for _ in range(6)]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(5):
        write_cifar(folder / f"data_batch_{i + 1}.bin", train[2 * i : 2 * i + 2], 1)
    write_cifar(folder / "test_batch.bin", test, 1)
    return tmp_path, train, test


@pytest.fixture
def cifar100(tmp_path, rng):
    train, test = [picture(rng, 32) for _ in range(10)], [picture(rng, 32) for _ in range(6)]
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    write_cifar(folder / "train.bin", train, 2)
    write_cifar(folder / "test.bin", test, 2)
    return tmp_path, train, test


@pytest.fixture
def celeba_hq(tmp_path, rng):
    for i in range(10):
        Image.fromarray(picture(rng, 40)).save(tmp_path / f"{i}.jpg")
    return tmp_path


@pytest.fixture
def lsun_bedroom(tmp_path, rng):
    for split, count in (("train", 5), ("val", 4)):
        with lmdb.open(str(tmp_path / f"bedroom_{split}_lmdb")) as base, base.begin(write=True) as transaction:
            for i in range(count):
                transaction.put(f"{split}{i:040d}".encode(), encoded(picture(rng, 48), "WEBP"))
    return tmp_path
