"""Find image files on the disk and read them.

Every data set uses these functions, so all data sets read the same formats in the same way.
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

EXCLUDED_FORMATS = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats in Pillow's registry that are not read.

They start a program, contain another file, or are not decoded by Pillow itself.
"""

SYSTEM_FOLDERS = ("__MACOSX",)
"""Folders with copies made by an operating system. They are skipped, as is every name that starts with a dot."""

MAX_SUFFIXES = 5
"""Maximum number of suffixes that a remark lists."""

TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""For each EXIF orientation, the operation that turns a picture upright."""

ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
"""Pillow's modes with an alpha channel."""

BITS_TAG, PHOTOMETRIC_TAG, SAMPLE_FORMAT_TAG = 258, 262, 339
"""The numbers of three TIFF tags."""


def is_image(file: Path) -> bool:
    """Return whether the file's suffix belongs to a raster format that Pillow itself decodes."""
    Image.init()
    format_ = Image.EXTENSION.get(file.suffix.lower())
    return format_ == "MPO" or (format_ in Image.OPEN and format_ not in EXCLUDED_FORMATS)  # Pillow opens MPO as JPEG


def read_image(source: Path | bytes, name: str) -> Image.Image:
    """Read a picture and return it in RGB.

    The picture is turned upright by its EXIF orientation. Transparent parts are put on black. Only the first frame of an
    animation is read. Grey values of more than 8 bits are scaled so that the largest value of the format is white. A picture
    with more pixels than `PIL.Image.MAX_IMAGE_PIXELS` is rejected.

    Args:
        source: a file, or the contents of a file.
        name: the name of the picture in the error message, usually a path.

    Raises:
        UserError: the picture cannot be read.
    """
    try:
        with (
            source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream,
            _size_warning_as_error(),
            Image.open(stream, formats=_formats_to_try(source)) as image,
        ):
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except MemoryError:
        raise
    except Exception as error:  # decoders may raise nearly any class for a damaged file
        raise UserError(f"cannot read image {name}: {reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if the EXIF data are damaged, which do not affect the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def files_below(root: Path) -> list[Path]:
    """Return every regular file below a folder, sorted by path.

    Linked folders are searched too, and each folder is searched once. If a folder is reached both directly and through a
    link, its files get the direct path. Hidden files and folders are skipped: names that start with a dot, and those in
    `SYSTEM_FOLDERS`.

    Raises:
        UserError: a folder cannot be listed, or the target of a link does not exist.
    """
    found: list[Path] = []
    pending = deque([root])
    visited: set[tuple[int, int]] = set()
    while pending:
        folder = pending.popleft()
        state = _stat(folder)
        if (state.st_dev, state.st_ino) not in visited:
            visited.add((state.st_dev, state.st_ino))
            files, folders = _entries(folder)
            found += files
            pending.extendleft(reversed([entry for entry in folders if not entry.is_symlink()]))
            pending.extend(entry for entry in folders if entry.is_symlink())
    return sorted(found)


def content_hash(file: Path) -> bytes:
    """Return the 16-byte blake2b hash of a file's bytes.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise UserError(f"cannot read {printable(file)}: {reason(error)}") from error


def skipped_files_remark(others: Sequence[Path], total: int) -> str:
    """Return the end of a remark about skipped files: `3 of 25 files are not images ... (.json, .txt)`."""
    counts = Counter(printable(file.suffix.lower()) or "no suffix" for file in others)
    suffixes = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    listed = ", ".join(suffixes[:MAX_SUFFIXES] + ["..."] * (len(suffixes) > MAX_SUFFIXES))
    what = "is not an image that Pillow reads and was" if len(others) == 1 else "are not images that Pillow reads and were"
    return f"{len(others)} of {total} file{'s' if total != 1 else ''} {what} passed over ({listed})"


def reason(error: BaseException) -> str:
    """Return why a file could not be read, without its path, which is already in the message."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image that Pillow reads"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _formats_to_try(source: Path | bytes) -> list[str]:
    """Return the formats to try.

    A format without a signature would accept nearly any file. Such a format is tried only if the suffix names it.
    """
    Image.init()
    named = Image.EXTENSION.get(source.suffix.lower()) if isinstance(source, Path) else None
    return [
        format_
        for format_, (_, signature_test) in Image.OPEN.items()
        if format_ not in EXCLUDED_FORMATS and (signature_test or format_ == named)
    ]


@contextmanager
def _size_warning_as_error() -> Iterator[None]:
    """Turn Pillow's warning about too many pixels into an error, and switch off its other warnings.

    Pillow itself only warns up to twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if not image.width or not image.height:
        raise ValueError("it has no pixels")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(image)).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info or _palette_mode(image).endswith("A"):
        transparent = image.convert("LA") if image.mode == "La" else image
        transparent = transparent.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", transparent.size, "black"), transparent).convert("RGB")
    return image.convert("RGB")


def _palette_mode(image: Image.Image) -> str:
    return image.palette.mode if image.mode == "P" and image.palette else ""


def _to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale grey values of more than 8 bits to 8 bits; Pillow itself would clip them."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(BITS_TAG, (16,))[0], tags.get(SAMPLE_FORMAT_TAG, (1,))[0] == 2
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    if image.mode == "I" and bits == 32 and not signed:
        values %= 2**32  # Pillow has no unsigned 32-bit mode
    white = _white_value(float(values.max()), _white_candidates(image.mode, bits, signed))
    if isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = 0
    if tags.get(PHOTOMETRIC_TAG) == 0:  # zero is white
        values = white - values
    np.clip(values, 0, white, out=values)
    values *= 255 / white
    return np.rint(values).astype(np.uint8)


def _white_candidates(mode: str, bits: int, signed: bool) -> tuple[int, ...]:
    """Return the candidates for the value of white, in rising order.

    A 32-bit file often holds values of 8 or 16 bits. If white were always the largest 32-bit value, such a picture would be
    black.
    """
    if mode == "F":
        return 1, 255, 65535
    largest = 2 ** (bits - signed) - 1
    return (255, 65535, largest) if bits == 32 else (largest,)


def _white_value(largest: float, candidates: Iterable[int]) -> int:
    for white in candidates:
        if largest <= white:
            return white
    raise ValueError(f"its values reach {largest:g}, and its value of white is unknown")


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TO_UPRIGHT[orientation]) if orientation in TO_UPRIGHT else image


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the subfolders of a folder, each sorted by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read folder {printable(folder)}: {reason(error)}") from error
    shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in SYSTEM_FOLDERS]
    modes = {entry: _stat(entry).st_mode for entry in shown}
    return [entry for entry in shown if S_ISREG(modes[entry])], [entry for entry in shown if S_ISDIR(modes[entry])]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
