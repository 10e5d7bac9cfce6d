"""Folders of image files of every format, some of them damaged."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import nasty
from tests.fuzz.harness import HERE, Case, Outcome, where

FORMATS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tiff",
    "GIF": ".gif",
    "PPM": ".ppm",
    "TGA": ".tga",
}
MODES = {
    "PNG": ("L", "LA", "P", "RGBA", "1", "I;16"),
    "JPEG": ("L", "CMYK"),
    "WEBP": ("RGBA",),
    "TIFF": ("L", "I;16", "F", "CMYK", "LAB", "1"),
    "BMP": ("L", "1", "P"),
    "GIF": ("L", "P"),
    "PPM": ("L", "1"),
    "TGA": ("L", "RGBA"),
}
NAMES = (
    "{}.PNG", "{}.jpeg", "{}", "{}.txt", "{}.png.bak", "{}.pdf", "{}.eps", "a b {}.png", "ünï{}.png", "{}\n.png", "-{}.png",
    "sub/{}.png", ".hidden{}.png", ".cache/{}.png", "__MACOSX/._{}.png", "._{}.png", "{}" + "x" * 240 + ".png", "{}.JPG",
    "{}.tif", "{}.gif",
)  # fmt: skip


@cache
def picture(number: int, size: int, form: str, mode: str = "RGB") -> bytes:
    """Return an encoded picture that differs for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size + number % 3, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.frombytes("LAB", image.size, image.tobytes())
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def case(seed: int) -> Case:
    """Return a dry run on a folder, or its use as the training images of a small model."""
    draw = Random(seed)
    files = dict(_file(number, draw) for number in range(draw.choice((1, 2, 4, 6, 6, 8))))
    odd = draw.choice(("",) * 6 + ("loop", "dangling", "folder.png", "linked"))
    attack = (
        ["--attacks", "dlg", "--set", "attack.dlg.evaluations=1"] if draw.random() < 0.1 else ["--attacks", "constant_image"]
    )
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
        *attack,
        "--out",
        "out",
        "--dry-run",
    ]

    def prepare(place: Path) -> None:
        root = place / "pictures"
        root.mkdir()
        for name, content in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        _odd(root, odd)

    def check(place: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
        if outcomes[0].code == 0:
            yield from _accepted(place / "pictures", outcomes[0].err)

    return Case([[*words, "--datasets", f"folder:{HERE}/pictures"]], prepare, check, own=())


def _file(number: int, draw: Random) -> tuple[str, bytes]:
    form = draw.choice(sorted(FORMATS))
    mode = draw.choice(MODES[form]) if draw.random() < 0.3 else "RGB"
    name, content = f"{number}{FORMATS[form]}", picture(draw.randrange(60) * 8 + number, draw.choice((12, 16, 24)), form, mode)
    if draw.random() < 0.2:
        name = draw.choice(NAMES).format(number)
    return name, draw.choice(CHANGES)(content, draw) if draw.random() < 0.3 else content


def _odd(root: Path, odd: str) -> None:
    """Add what is no image file."""
    if odd == "loop":
        (root / "loop").symlink_to(root)
    elif odd == "dangling":
        (root / "dangling.png").symlink_to("nowhere")
    elif odd == "folder.png":
        (root / "folder.png").mkdir()
    elif odd == "linked":
        (root.parent / "elsewhere").mkdir()
        for number in range(3):
            (root.parent / "elsewhere" / f"e{number}.png").write_bytes(picture(1000 + number, 16, "PNG"))
        (root / "linked").symlink_to(root.parent / "elsewhere")


def declared_size(content: bytes, draw: Random) -> bytes:
    """Return a small PNG that says that it is huge, or that has no pixel."""
    width, height = draw.choice(
        ((0, 0), (0, 16), (1, 10**6), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (12_000, 9_000), (10**5, 1))
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _exif(content: bytes, draw: Random) -> bytes:
    """Return a picture with EXIF data that is turned, out of range or garbage."""
    form, exif = draw.choice(("JPEG", "PNG", "WEBP")), Image.Exif()
    exif[0x0112] = draw.choice((1, 3, 6, 8, 0, 9, 65535))
    raw = draw.choice(
        (exif.tobytes(), b"Exif\0\0" + draw.randbytes(40), b"", exif.tobytes()[:-3], b"Exif\0\0II*\0" + b"\xff" * 40)
    )
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(draw.randrange(10**6), 16, "PNG"))).save(buffer, form, exif=raw)
    return buffer.getvalue()


def _frames(content: bytes, draw: Random) -> bytes:
    buffer = io.BytesIO()
    first, *rest = (Image.open(io.BytesIO(picture(draw.randrange(10**6) * 3, 16, "PNG"))) for _ in range(3))
    first.save(buffer, draw.choice(("GIF", "TIFF", "PNG", "WEBP")), save_all=True, append_images=rest)
    return buffer.getvalue()


def _text_chunk(content: bytes, draw: Random) -> bytes:
    """Return a PNG with a compressed text that grows when it is read."""
    text = zlib.compress(bytes(draw.choice((100, 2 * 2**20, 80 * 2**20))))
    png = picture(draw.randrange(10**6), 16, "PNG")
    return png[:33] + _chunk(b"zTXt", b"a\0\0" + text) + _chunk(b"iCCP", b"x\0\0" + text[:50]) + png[33:]


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    nasty.damaged, nasty.damaged, nasty.damaged, declared_size, _exif, _frames, _text_chunk,
)  # fmt: skip


def _accepted(root: Path, printed: str) -> Iterator[tuple[str, str]]:
    """Yield how the folder's images differ in number from those that Pillow opens, and what goes wrong with them."""
    dataset = created(f"folder:{root}")
    visible = _visible(root)
    opened = {file.read_bytes() for file in visible if file.suffix.lower() in Image.registered_extensions() and _opens(file)}
    contents = dataset.contents()
    used = len(contents.public) + len(contents.private)
    if used > len(visible) or (used < len(opened) and "passed over" not in printed):
        yield "an accepted folder does not use all its images", f"{used} of {len(opened)}"
    yield from read(dataset)


def created(asked: str) -> Any:
    """Return the data set of this name."""
    from benchmark.base.spec import parse_one
    from benchmark.registry import Registry

    return Registry([]).create("dataset", parse_one(asked))[1]


def read(dataset: Any) -> Iterator[tuple[str, str]]:
    """Yield what goes wrong when the images of an accepted data set are read; a sentence is no fault."""
    import torch

    from benchmark.base.errors import UserError

    for reader in (dataset.public, dataset.training, lambda size: dataset.victims(1, size, torch.Generator().manual_seed(0))):
        try:
            found = reader(8)
        except UserError:
            continue
        except Exception as error:
            yield f"{type(error).__name__} in {where(error)}", " ".join(str(error).split())[:300]
            continue
        tensors = [found] if isinstance(found, torch.Tensor) else [picture.image for picture in found]
        if not all(tensor.isfinite().all() and tensor.abs().max() <= 1 for tensor in tensors if tensor.numel()):
            yield "an image is outside of [-1, 1]", str(dataset)


def _visible(root: Path) -> list[Path]:
    found = [file for file in root.rglob("*") if file.is_file()]
    found += [file for link in root.iterdir() if link.is_symlink() and link.name == "linked" for file in link.iterdir()]
    parts = {file: file.relative_to(root).parts for file in found}
    return sorted({file for file in found if not any(part.startswith(".") or part == "__MACOSX" for part in parts[file])})


def _opens(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            image.load()
        return True
    except Exception:
        return False
