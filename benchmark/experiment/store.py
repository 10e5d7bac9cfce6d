"""The run directory. One directory per cell, complete or absent: it is written aside and renamed into place.

RUN/run.json                        title, and the cells of the latest plan in their order
RUN/cells/IDENTITY/record.json      the record, with the whole resolved configuration
RUN/cells/IDENTITY/samples.parquet  a row per private image, originals and reconstructions included

What cannot be read as it was written counts as missing, and a run makes it again.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.base.errors import UserError, remark
from benchmark.base.files import ASIDE, digest, real_directory, remove, replace, sync, write_new
from benchmark.base.parsing import read_text
from benchmark.base.paths import followed
from benchmark.evaluation.judge import Sample
from benchmark.experiment.frames import most_bytes, to_frame, to_parquet, with_measurement
from benchmark.experiment.records import (
    IDENTITY,
    SCHEMA_VERSION,
    Damaged,
    Record,
    Status,
    checksum,
    to_json,
    to_plan,
    to_record,
)

__all__ = ["ASIDE", "SCHEMA_VERSION", "Cell", "DamagedCell", "Record", "Status", "Store"]

OWN_DIRECTORIES = ("cells", "figures")

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers to `flock`."""

_LEFTOVER = f"{ASIDE}{'[0-9a-f]' * 16}"
"""The random name under which a single file is written aside."""

_BEFORE = f"{ASIDE}samples"
"""The samples that a record belongs to, while others take their place."""


class DamagedCell(Exception):
    """A cell that is there and cannot be read.

    Attributes:
        file: the file at fault, relative to the run directory.
        reason: what is wrong with it.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A finished cell as it was read: its record, and a row per image."""

    record: Record
    samples: pd.DataFrame


class Store:
    """A run directory; `path` need not exist yet. Where `path` is a link, its target is the run directory."""

    def __init__(self, path: Path) -> None:
        self.path = followed(path)
        self.cells = self.path / "cells"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the directory for one writing process, and clear what a killed one left half-written.

        Raises:
            UserError: another process holds it, it cannot be written, or a part of it is a link.
        """
        self.check()
        lock = None
        try:
            try:
                self.cells.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                self._hold(lock)
                self._clear()
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {_reason(error)}") from error
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def check(self) -> None:
        """Refuse a directory whose parts lie elsewhere: whatever is written or removed there might be somebody else's.

        Raises:
            UserError: `cells` or `figures` is a link, or no directory.
        """
        for path in (self.path / name for name in OWN_DIRECTORIES):
            try:
                wrong = os.path.lexists(path) and not real_directory(path)
            except OSError as error:
                raise UserError(f"cannot read {path}: {_reason(error)}") from error
            if wrong:
                kind = "a link" if path.is_symlink() else "not a directory"
                raise UserError(f"{path} is {kind}; remove it, or choose another directory, since GIDBench writes there")

    def save(self, record: Record, samples: Sequence[Sample]) -> None:
        """Write a cell, replacing an earlier outcome of the same identity.

        Raises:
            UserError: the disk does not take it; everything written before stays.
        """
        aside, target = self.cells / f"{ASIDE}{record.identity}", self.cells / record.identity
        content = to_parquet(samples)
        try:
            self._discard(aside)
            try:
                aside.mkdir()
                write_new(aside / "samples.parquet", content)
                write_new(aside / "record.json", _sealed(record, content))
                sync(aside)
                if real_directory(target):
                    target.rename(aside / target.name)
                else:
                    remove(target)
                aside.rename(target)
                sync(self.cells)
                remove(target / target.name)
            finally:
                self._discard(aside)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.cells}: {_reason(error)}; finished cells are kept, the same command goes on from there"
            ) from error

    def amend(self, cell: Cell, name: str, values: Sequence[float | None]) -> None:
        """Write a measurement of each image of a cell that was read. A kill at any moment leaves the old cell or the new one.

        Raises:
            UserError: the disk does not take it, or the cell has changed since it was read.
        """
        place = self.cells / cell.record.identity
        try:
            before = _samples(place, cell.record)
            after = with_measurement(before, name, values)
            replace(place / _BEFORE, before)
            replace(place / "samples.parquet", after)
            replace(place / "record.json", _sealed(cell.record, after))
            (place / _BEFORE).unlink()
        except (OSError, Damaged) as error:
            reason = _reason(error) if isinstance(error, OSError) else error
            raise UserError(f"cannot write to {place}: {reason}; every cell is kept") from error

    def read(self, identity: str) -> Cell | None:
        """Return a cell, None where there is none.

        Raises:
            DamagedCell: one of its files is not what was saved, or of another version.
        """
        place = self.cells / identity
        name = place.name
        try:
            if not os.path.lexists(place):
                return None
            if not real_directory(place):
                raise Damaged("it is not a directory")
            name = f"{place.name}/record.json"
            record = to_record(_text(place / "record.json"), identity)
            name = f"{place.name}/samples.parquet"
            return Cell(record, to_frame(_samples(place, record), record))
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError from error
            raise DamagedCell(f"cells/{name}", _reason(error)) from error
        except Damaged as error:
            raise DamagedCell(f"cells/{name}", str(error)) from error

    def record(self, identity: str) -> Record | None:
        """Return the record of a cell, None where there is none that can be read in this version's form."""
        try:
            cell = self.read(identity)
        except DamagedCell:
            return None
        return cell.record if cell else None

    def samples(self, identity: str) -> pd.DataFrame:
        """Return the rows of a cell; `original` and `reconstruction` are (H, W, C) float32 arrays again.

        Raises:
            DamagedCell: as `read`.
            KeyError: there is no such cell.
        """
        cell = self.read(identity)
        if cell is None:
            raise KeyError(identity)
        return cell.samples

    def save_plan(
        self,
        title: str,
        success_db: float,
        settings: Mapping[str, object],
        identities: Sequence[str],
        floors: Sequence[str] | None = None,
    ) -> None:
        """Note what the latest command planned: heading, threshold, hyper-parameters that it set, cells in order, and floors.

        Raises:
            UserError: the disk does not take it.
        """
        plan = {
            "title": title,
            "success_db": success_db,
            "settings": dict(settings),
            "cells": list(identities),
            "floors": floors,
        }
        try:
            replace(self.path / "run.json", to_json(plan))
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {_reason(error)}") from error

    def plan(self) -> dict[str, Any]:
        """Return what `save_plan` noted.

        Raises:
            UserError: this is no run directory.
        """
        try:
            return to_plan(_text(self.path / "run.json"))
        except (Damaged, OSError) as error:
            raise UserError(f"{self.path} is no run directory (it has no readable run.json)") from error

    def _hold(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {self.path}; wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remark(f"{self.path} lies on a file system without locks; nothing keeps a second run from writing there")

    def _clear(self) -> None:
        """Clear what a killed process left, and whatever stands in the place of a cell; other names are not GIDBench's."""
        for path in self.path.glob(_LEFTOVER):
            remove(path)
        for path in list(self.cells.iterdir()):
            if IDENTITY.fullmatch(path.name.removeprefix(ASIDE)):
                if path.name.startswith(ASIDE):
                    self._discard(path)
                elif not real_directory(path):
                    remove(path)
                else:
                    self._clear_amended(path)

    def _clear_amended(self, place: Path) -> None:
        """Clear what a killed measurement left; samples that the record still belongs to are put back first."""
        for leftover in place.glob(_LEFTOVER):
            remove(leftover)
        before = place / _BEFORE
        if not os.path.lexists(before):
            return
        try:
            record = to_record(_text(place / "record.json"), place.name)
            replace(place / "samples.parquet", _samples(place, record))
            remove(before)
        except (OSError, Damaged):  # whoever reads the cell says so
            return

    def _discard(self, aside: Path) -> None:
        """Clear what was not written to its end, and put the cell back that it was about to replace."""
        replaced = aside / aside.name.removeprefix(ASIDE)
        target = self.cells / replaced.name
        if real_directory(aside) and real_directory(replaced) and not os.path.lexists(target):
            replaced.rename(target)
        remove(aside)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _text(path: Path) -> str:
    """Return a file's text.

    Raises:
        Damaged: it cannot be read.
    """
    try:
        return read_text(path, "")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise Damaged("it is not a text file of a usual size") from error


def _sealed(record: Record, samples: bytes) -> bytes:
    """Return the content of `record.json` that belongs to these samples."""
    values = dataclasses.asdict(dataclasses.replace(record, samples_digest=digest(samples)))
    return to_json({**values, "checksum": checksum(values)})


def _samples(place: Path, record: Record) -> bytes:
    """Return the samples that a record belongs to.

    Raises:
        Damaged: they are not there any more.
    """
    content = _content(place / "samples.parquet", most_bytes(record))
    if digest(content) != record.samples_digest and os.path.lexists(place / _BEFORE):
        content = _content(place / _BEFORE, most_bytes(record))
    if digest(content) != record.samples_digest:
        raise Damaged("its checksum differs")
    return content


def _content(path: Path, most: int) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise Damaged("it is not a file")
    if path.stat().st_size > most:
        raise Damaged("it is larger than the cell's images")
    return path.read_bytes()
