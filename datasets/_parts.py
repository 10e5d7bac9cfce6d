"""A part of a data set that lies on disk: how many images, where each comes from, and how to read one.

Not a plugin. The folder of a data set NAME is $GIDBENCH_DATA/NAME, or ~/.cache/gidbench/NAME, unless it is given (`NAME:PATH`).
"""

from __future__ import annotations

import hashlib
import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from benchmark.errors import UserError, first_line
from benchmark.images import centred_square
from benchmark.plugins import Picture


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one part, read when they are asked for.

    Attributes:
        dataset: name of the data set, for messages.
        sources: where each image comes from.
        load: image number i.
    """

    dataset: str
    sources: Sequence[str]
    load: Callable[[int], Image.Image]

    def pictures(self, indices: Sequence[int], size: int) -> list[Picture]:
        """These images at `size` x `size`.

        Raises:
            UserError: one cannot be read.
        """
        return [Picture(self._square(i, size), self.sources[i]) for i in indices]

    def first(self, count: int, size: int) -> list[Picture]:
        """The first `count` images, or all where there are fewer."""
        return self.pictures(range(min(count, len(self.sources))), size)

    def draw(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """`count` different images in a random order.

        Raises:
            UserError: there are not so many, or one cannot be read.
        """
        if count > len(self.sources):
            raise UserError(f"data set '{self.dataset}' has {len(self.sources)} images for victims, not {count}")
        return self.pictures(torch.randperm(len(self.sources), generator=generator)[:count].tolist(), size)

    def all(self, size: int) -> torch.Tensor:
        """(N, 3, size, size) every image."""
        return torch.stack([picture.image for picture in self.pictures(range(len(self.sources)), size)])

    def split(self, every: int) -> tuple[Part, Part]:
        """A public and a private part: every `every`-th image, in the order of a hash of the sources, is public."""
        order = sorted(range(len(self.sources)), key=lambda i: hashlib.blake2b(os.fsencode(self.sources[i])).digest())
        return self._only(order[::every]), self._only([i for n, i in enumerate(order) if n % every])

    def _only(self, chosen: Sequence[int]) -> Part:
        return Part(self.dataset, [self.sources[i] for i in chosen], lambda i: self.load(chosen[i]))

    def _square(self, index: int, size: int) -> torch.Tensor:
        try:
            return centred_square(self.load(index).convert("RGB"), size)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"data set '{self.dataset}': cannot read {self.sources[index]}: {first_line(error)}") from error


class OnDisk:
    """What data sets on disk share: victims from a private part, public images from another. Mixed in before `Dataset`.

    Attributes:
        shown: public images that stand for all of them in a grid; a model is trained on every one.
    """

    shown: ClassVar[int] = 1000

    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """See `Dataset.victims`: `count` different images of the private part."""
        return self._private().draw(count, size, generator)

    def public(self, size: int) -> list[Picture]:
        """See `Dataset.public`: the first `shown` images of the public part."""
        return self._public().first(self.shown, size)

    def training(self, size: int) -> torch.Tensor:
        """See `Dataset.training`: the whole public part."""
        return self._public().all(size)

    def _private(self) -> Part:
        raise NotImplementedError

    def _public(self) -> Part:
        raise NotImplementedError


def home(name: str, path: str, how: str) -> Path:
    """The folder that holds the data set.

    Args:
        name: of the data set.
        path: what the user named, empty for the usual place.
        how: how to get the data, the end of the message where there is no such folder.

    Raises:
        UserError: there is no such folder.
    """
    usual = Path(os.environ.get("GIDBENCH_DATA") or Path.home() / ".cache" / "gidbench") / name
    folder = Path(path).expanduser() if path else usual
    if not folder.is_dir():
        raise UserError(f"data set '{name}' is not on this machine: there is no folder {folder}; {how}")
    return folder


def parquet_part(dataset: str, files: Sequence[Path], label: str) -> Part:
    """The images of Parquet files as the Hugging Face hub has them: one column of structs with the encoded `bytes`.

    Args:
        dataset: name of the data set, for messages.
        files: read one after the other.
        label: begins the name of every source.

    Raises:
        UserError: a file cannot be read or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        tables = [pyarrow.parquet.ParquetFile(file) for file in files]
        column = next(f.name for f in tables[0].schema_arrow if pyarrow.types.is_struct(f.type) and "bytes" in f.type.names)
    except StopIteration:
        raise UserError(f"data set '{dataset}': {files[0].name} has no column of images") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"data set '{dataset}': cannot read {files[0].parent}: {first_line(error)}") from error
    groups = [(table, group) for table in tables for group in range(table.num_row_groups)]
    ends = list(accumulate(table.metadata.row_group(group).num_rows for table, group in groups))

    @lru_cache(maxsize=2)
    def read(number: int) -> Any:
        table, group = groups[number]
        return table.read_row_group(group, columns=[column]).column(column)

    def load(index: int) -> Image.Image:
        number = bisect_right(ends, index)
        begin = ends[number - 1] if number else 0
        return Image.open(io.BytesIO(read(number)[index - begin]["bytes"].as_py()))

    return Part(dataset, [f"{label}-{i}" for i in range(ends[-1] if ends else 0)], load)


def listing(files: Iterable[Path], root: Path) -> str:
    """A fingerprint of large files without reading them: relative names and sizes."""
    lines = sorted(f"{file.relative_to(root)}\0{file.stat().st_size}" for file in files)
    return hashlib.blake2b(os.fsencode("\n".join(lines)), digest_size=16).hexdigest()
