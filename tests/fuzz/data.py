"""Published data sets on disk, small and damaged: CIFAR's binary files, Parquet files, folders of faces, lmdb."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet

from tests.data.conftest import write_cifar, write_parquet
from tests.fuzz import images, nasty
from tests.fuzz.harness import HERE, Case, Outcome

Files = dict[str, bytes]


@cache
def _cifar_binary(label_bytes: int) -> Mapping[str, bytes]:
    draw = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if label_bytes == 1 else ["train.bin", "test.bin"]
    folder = "cifar-10-batches-bin" if label_bytes == 1 else "cifar-100-binary"
    return _written({f"{folder}/{name}": lambda path: write_cifar(path, _pictures(draw, 4, 32), label_bytes) for name in names})


@cache
def _parquet(names: tuple[str, ...], column: str, size: int) -> Mapping[str, bytes]:
    draw = np.random.default_rng(1)
    return _written({name: lambda path: write_parquet(path, _pictures(draw, 6, size), column) for name in names})


@cache
def _faces() -> Mapping[str, bytes]:
    return {f"{number}.jpg": images.picture(number, 24, "JPEG") for number in range(10)}


@cache
def _lmdb() -> Mapping[str, bytes]:
    found: Files = {}
    for split, count in (("train", 6), ("val", 5)):
        with tempfile.TemporaryDirectory() as place:
            with lmdb.open(place, map_size=2**20) as base, base.begin(write=True) as transaction:
                for i in range(count):
                    transaction.put(f"{split}{i:040d}".encode(), images.picture(i, 32, "WEBP"))
            found |= {f"bedroom_{split}_lmdb/{name}": Path(place, name).read_bytes() for name in ("data.mdb", "lock.mdb")}
    return found


KINDS: Mapping[str, tuple[str, Callable[[], Mapping[str, bytes]]]] = {
    "cifar10 in binary": ("cifar10", lambda: _cifar_binary(1)),
    "cifar100 in binary": ("cifar100", lambda: _cifar_binary(2)),
    "cifar10 in Parquet": ("cifar10", lambda: _parquet(("plain_text/train-0.parquet", "plain_text/test-0.parquet"), "img", 32)),
    "celeba_hq as a folder": ("celeba_hq", _faces),
    "celeba_hq in Parquet": ("celeba_hq", lambda: _parquet(("data/a.parquet", "data/b.parquet"), "image", 24)),
    "lsun": ("lsun_bedroom", _lmdb),
    "lsun ": ("lsun_bedroom", _lmdb),
}


def case(seed: int) -> Case:
    """Return a dry run on a data set of which some files were damaged."""
    draw = Random(seed)
    name, make = KINDS[draw.choice(sorted(KINDS))]
    files: dict[str, bytes | None] = dict(make())
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        _change(files, draw)
    budget = (
        ["--attacks", "dlg", "--set", "attack.dlg.evaluations=1"] if draw.random() < 0.1 else ["--attacks", "constant_image"]
    )
    usual = draw.random() < 0.3
    words = [
        "run",
        "--grid",
        "smoke",
        "--models",
        "tiny",
        "--defenses",
        "none",
        "--victims",
        "1",
        *budget,
        "--out",
        "out",
        "--dry-run",
    ]

    def prepare(place: Path) -> None:
        for file, content in files.items():
            target = place / ("data" if usual else "") / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.mkdir()
            else:
                target.write_bytes(content)

    def check(place: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
        if outcomes[0].code == 0:
            yield from images.read(images.created(name if usual else f"{name}:{place / name}"))

    return Case([[*words, "--datasets", name if usual else f"{name}:{HERE}/{name}"]], prepare, check, own=())


def _change(files: dict[str, bytes | None], draw: Random) -> None:
    file = draw.choice(sorted(files))
    content = files[file] or b""
    special = {".parquet": _other_table, ".mdb": _pages}.get(Path(file).suffix)
    roll = draw.random()
    if special and roll < 0.6:
        files[file] = special(content, draw)
    elif roll < 0.85:
        files[file] = nasty.damaged(content, draw)
    elif roll < 0.9:
        files[file] = None
    elif roll < 0.95:
        del files[file]
        files[f"{file}.bak"] = content
    else:
        extra = draw.choice(
            ("README.md", "extra.parquet", "train-9.parquet", "test-9.parquet", "x.png", "._0.jpg", "x.bin", "x.mdb")
        )
        files[str(Path(file).parent / extra)] = draw.choice((b"", b"x", content, draw.randbytes(100)))


def _other_table(content: bytes, draw: Random) -> bytes:
    """Return a Parquet file with other columns, or the same one with its footer damaged."""
    png = images.picture(draw.randrange(100), 16, "PNG")
    bomb = images.declared_size(b"", draw)
    structs = (png, None, "text", bomb, b"", 5, [1, 2], {"x": png})
    cells: list[Any] = [[{"bytes": value, "path": "a"}] * 3 for value in structs]
    cells += [[{"path": "a"}] * 3, [None] * 3, [png] * 3, ["a"] * 3, [1.5] * 3, [[{"bytes": png}]] * 3]
    roll = draw.random()
    if roll < 0.35 and len(content) > 100:
        return content[:-80] + nasty.flipped(content[-80:], draw)
    table = pyarrow.table({draw.choice(("image", "img", "x", "é")): draw.choice(cells)})
    table = table.slice(0, draw.choice((0, 3, 3, 3)))
    if roll < 0.5:
        table = pyarrow.table({})
    elif roll < 0.6:
        table = pyarrow.table({"label": [1] * table.num_rows, "image": table.column(0), "image2": table.column(0)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        table, buffer, row_group_size=draw.choice((1, 1000)), compression=draw.choice(("snappy", "zstd", "none"))
    )
    return buffer.getvalue()


def _pages(content: bytes, draw: Random) -> bytes:
    """Return an lmdb file that was cut at a page, or in which numbers of pages were changed."""
    if len(content) < 3 * 4096:
        return nasty.damaged(content, draw)
    pages = len(content) // 4096
    roll = draw.random()
    if roll < 0.3:
        return content[: 4096 * draw.randrange(pages)]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.choice((draw.randrange(2) * 4096, draw.randrange(pages) * 4096)) + draw.randrange(0, 160, 8)
        number = draw.choice((0, 1, pages, pages * 4, 2**31, 2**63, 2**64 - 1, draw.randrange(2**16)))
        changed[at : at + 8] = struct.pack("<Q", number)
    if roll < 0.5:
        begin = 4096 * draw.randrange(pages)
        changed[begin : begin + 4096] = draw.choice((bytes(4096), b"\xff" * 4096, draw.randbytes(4096)))
    return bytes(changed)


def _pictures(draw: np.random.Generator, count: int, size: int) -> list[Any]:
    return [draw.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def _written(writers: Mapping[str, Callable[[Path], None]]) -> Files:
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for name, write in writers.items():
            write(Path(place, "file"))
            found[name] = Path(place, "file").read_bytes()
        return found
