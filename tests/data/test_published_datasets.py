"""CIFAR, CelebA-HQ and LSUN from small files in their published forms."""

import numpy as np
import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.images import to_unit
from benchmark.base.seeds import stream
from benchmark.datasets.celeba_hq import CelebAHQ
from benchmark.datasets.cifar10 import CIFAR10
from benchmark.datasets.cifar100 import CIFAR100
from benchmark.datasets.lsun_bedroom import LSUNBedroom
from benchmark.registry import Registry
from benchmark.registry.contract import examine
from tests.data.conftest import write_parquet

NAMES = ("cifar10", "cifar100", "celeba_hq", "lsun_bedroom")


def pixels(image):
    return np.rint(255 * to_unit(image)).astype(np.uint8)


@pytest.mark.parametrize(("name", "cls"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_binary_cifar_is_read_to_the_pixel(name, cls, request):
    root, train, test = request.getfixturevalue(name)
    dataset = cls(path=str(root))
    for picture in dataset.victims(6, 32, stream(0, "v")):
        assert np.array_equal(pixels(picture.image), test[int(picture.source.removeprefix("test-"))])
    assert all(np.array_equal(pixels(a), b) for a, b in zip(dataset.training(32), train, strict=True))
    assert [p.source for p in dataset.public(32)] == [f"train-{i}" for i in range(10)]


def test_parquet_gives_the_same_images_as_the_binary_files(cifar10, tmp_path):
    root, train, test = cifar10
    tables = tmp_path / "tables" / "plain_text"
    tables.mkdir(parents=True)
    write_parquet(tables / "train-00000-of-00002.parquet", train[:7], "img")
    write_parquet(tables / "train-00001-of-00002.parquet", train[7:], "img")
    write_parquet(tables / "test-00000-of-00001.parquet", test, "img")
    a, b = CIFAR10(path=str(root)), CIFAR10(path=str(tables.parent))
    assert torch.equal(a.training(32), b.training(32))
    first, second = (d.victims(4, 32, stream(0, "v")) for d in (a, b))
    assert all(torch.equal(x.image, y.image) for x, y in zip(first, second, strict=True))


def test_celeba_hq_reads_folders_and_tables(celeba_hq, tmp_path, rng):
    dataset = CelebAHQ(path=str(celeba_hq))
    assert len(dataset.public(16)) == len(dataset.training(16)) == 2
    assert len({p.source for p in dataset.victims(8, 16, stream(0, "v"))}) == 8
    tables = tmp_path / "tables"
    tables.mkdir()
    pictures = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(10)]
    write_parquet(tables / "train-00000-of-00001.parquet", pictures, "image")
    for picture in CelebAHQ(path=str(tables)).victims(8, 16, stream(0, "v")):
        assert np.array_equal(pixels(picture.image), pictures[int(picture.source.removeprefix("row-"))])


def test_lsun_is_read_from_lmdb(lsun_bedroom):
    dataset = LSUNBedroom(path=str(lsun_bedroom))
    assert dataset.training(24).shape == (5, 3, 24, 24)
    assert all(p.source.startswith("val") for p in dataset.victims(4, 24, stream(0, "v")))


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract(name, request):
    given = request.getfixturevalue(name)
    root = given[0] if isinstance(given, tuple) else given
    assert [f for f in examine(f"{name}:{root}", Registry()) if f.problem] == []


def test_parquet_keeps_the_contract_too(cifar10, tmp_path):
    _, train, test = cifar10
    tables = tmp_path / "tables"
    tables.mkdir()
    write_parquet(tables / "train-0.parquet", train, "img")
    write_parquet(tables / "test-0.parquet", test, "img")
    assert [f for f in examine(f"cifar10:{tables}", Registry()) if f.problem] == []


def test_other_pixels_are_another_data_set(cifar10):
    root, _, _ = cifar10
    dataset = CIFAR10(path=str(root))
    before, pictures = dataset.fingerprint(), dataset.victims(1, 32, stream(0, "v"))
    batch = root / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(bytes(255 - b for b in batch.read_bytes()))
    assert dataset.fingerprint() != before
    assert not torch.equal(dataset.victims(1, 32, stream(0, "v"))[0].image, pictures[0].image)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_data_set_is_reported_with_how_to_get_it(name, tmp_path, monkeypatch):
    from benchmark.base.spec import parse_one

    monkeypatch.setenv("GIDBENCH_DATA", str(tmp_path))
    for prepare in (lambda: None, (tmp_path / name).mkdir):
        prepare()
        _, dataset = Registry().create("dataset", parse_one(name))
        with pytest.raises(UserError, match=rf"{name}.*{name}:FOLDER") as error:
            dataset.victims(1, 32, stream(0, "v"))
        assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_sentence(cifar10, lsun_bedroom, celeba_hq):
    root, _, _ = cifar10
    batch = root / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(batch.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"test_batch.bin is damaged"):
        CIFAR10(path=str(root)).victims(1, 32, stream(0, "v"))
    (lsun_bedroom / "bedroom_val_lmdb" / "data.mdb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        LSUNBedroom(path=str(lsun_bedroom)).victims(1, 32, stream(0, "v"))
    for file in celeba_hq.glob("*.jpg"):
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot read"):
        CelebAHQ(path=str(celeba_hq)).victims(1, 32, stream(0, "v"))


def test_a_table_without_images_is_one_sentence(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "train-0.parquet")
    with pytest.raises(UserError, match="no column of images"):
        CelebAHQ(path=str(tmp_path)).public(16)


def test_other_images_under_the_same_names_are_another_data_set(celeba_hq):  # F4
    before = CelebAHQ(path=str(celeba_hq)).fingerprint()
    file = next(iter(celeba_hq.glob("*.jpg")))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert CelebAHQ(path=str(celeba_hq)).fingerprint() != before
