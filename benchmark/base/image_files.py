"""Image files on disk: which files are images, which lie below a folder, and how one is read.

Every data set uses these functions, so all of them read the same formats in the same way.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from benchmark.base.errors import UserError, first_line
from benchmark.base.paths import printable

NOT_READ = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats in Pillow's registry that start a program, hold another file, or are no pictures that Pillow itself decodes."""

HIDDEN = ("__MACOSX",)
"""Folders of copies that a system keeps, beside every name that begins with a dot."""

MOST_SUFFIXES = 5
"""Suffixes that a remark lists."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""

TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
"""Pillow's modes with an alpha channel."""

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Numbers of TIFF tags."""


def is_image(file: Path) -> bool:
    """Return whether the file's suffix is registered for a raster format that Pillow itself decodes."""
    Image.init()
    form = Image.EXTENSION.get(file.suffix.lower())
    return form == "MPO" or (form in Image.OPEN and form not in NOT_READ)  # Pillow opens MPO as JPEG


def read_image(source: Path | bytes, name: str) -> Image.Image:
    """Return a picture in RGB, upright as its EXIF orientation says, transparency on black; of an animation, the first frame.

    Grey of more than 8 bits is scaled so that the format's largest value is white. A picture with more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` is refused.

    Args:
        source: a file, or the contents of one.
        name: the picture in the message, usually a path.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with (
            source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream,
            _bombs_are_errors(),
            Image.open(stream, formats=_formats(source)) as image,
        ):
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly every class
        raise UserError(f"cannot read image {name}: {reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where the EXIF data are damaged, as they do not concern the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def files_below(root: Path) -> list[Path]:
    """Return every regular file below a folder in the order of its path, in linked folders too, each folder once.

    Hidden files and folders are passed over: names that begin with a dot, and `HIDDEN`. A folder that can be reached in two
    ways keeps the path without a link.

    Raises:
        UserError: a folder cannot be listed, or a link leads nowhere.
    """
    found: list[Path] = []
    waiting = deque([root])
    seen: set[tuple[int, int]] = set()
    while waiting:
        folder = waiting.popleft()
        state = _stat(folder)
        if (state.st_dev, state.st_ino) not in seen:
            seen.add((state.st_dev, state.st_ino))
            files, folders = _entries(folder)
            found += files
            waiting.extendleft(reversed([entry for entry in folders if not entry.is_symlink()]))
            waiting.extend(entry for entry in folders if entry.is_symlink())
    return sorted(found)


def content_hash(file: Path) -> bytes:
    """Return the 16-byte blake2b hash of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error


def passed_over(others: Sequence[Path], total: int) -> str:
    """Return the end of a remark on files that are no images: `3 of 25 files are not images ... (.json, .txt)`."""
    counts = Counter(printable(file.suffix.lower()) or "no suffix" for file in others)
    suffixes = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    listed = ", ".join(suffixes[:MOST_SUFFIXES] + ["..."] * (len(suffixes) > MOST_SUFFIXES))
    what = "is not an image that Pillow reads and was" if len(others) == 1 else "are not images that Pillow reads and were"
    return f"{len(others)} of {total} file{'s' if total != 1 else ''} {what} passed over ({listed})"


def reason(error: BaseException) -> str:
    """Return why a file could not be read, without the path that the message names already."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow reads"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _formats(source: Path | bytes) -> list[str]:
    """Return the formats to try: one without a signature, which fits nearly any file, only where the suffix names it."""
    Image.init()
    named = Image.EXTENSION.get(source.suffix.lower()) if isinstance(source, Path) else None
    return [form for form, (_, signed) in Image.OPEN.items() if form not in NOT_READ and (signed or form == named)]


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    """Let Pillow refuse what it only warns of, up to twice its largest number of pixels; its other warnings are off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if not image.width or not image.height:
        raise ValueError("it has no pixels")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info or _palette_mode(image).endswith("A"):
        clear = image.convert("LA") if image.mode == "La" else image
        clear = clear.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "black"), clear).convert("RGB")
    return image.convert("RGB")


def _palette_mode(image: Image.Image) -> str:
    return image.palette.mode if image.mode == "P" and image.palette else ""


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return deep grey as 8 bits; Pillow itself would clip it."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    if image.mode == "I" and bits == 32 and not signed:
        values %= 2**32  # Pillow has no unsigned mode of 32 bits
    white = _white(float(values.max()), _whites(image.mode, bits, signed))
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = 0
    if tags.get(PHOTOMETRIC) == 0:  # white is zero
        values = white - values
    np.clip(values, 0, white, out=values)
    values *= 255 / white
    return np.rint(values).astype(np.uint8)


def _whites(mode: str, bits: int, signed: bool) -> tuple[int, ...]:
    """Return what may be white, in rising order.

    Containers of 32 bits often hold fewer; a picture that stays below 1/65535 of the full range would be black all over.
    """
    if mode == "F":
        return 1, 255, 65535
    largest = 2 ** (bits - signed) - 1
    return (255, 65535, largest) if bits == 32 else (largest,)


def _white(largest: float, whites: Iterable[int]) -> int:
    for white in whites:
        if largest <= white:
            return white
    raise ValueError(f"its values reach {largest:g}, and nothing says which of them is white")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return a folder's files and its subfolders, in the order of their names."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read folder {printable(folder)}: {reason(error)}") from error
    shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in HIDDEN]
    modes = {entry: _stat(entry).st_mode for entry in shown}
    return [entry for entry in shown if S_ISREG(modes[entry])], [entry for entry in shown if S_ISDIR(modes[entry])]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
