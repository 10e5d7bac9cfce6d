"""The run directory, with one directory per cell.

RUN/run.json                        title and settings of the latest plan, and its cells in order
RUN/cells/IDENTITY/record.json      the record, with the complete resolved configuration
RUN/cells/IDENTITY/samples.parquet  one row per private image, with original and reconstruction

A cell is either complete or absent, because its directory is written under a temporary name and then renamed. A cell whose
files cannot be read, or differ from what was written, counts as missing, and a run computes it again.
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
from benchmark.base.files import TEMP_PREFIX, digest, real_directory, remove, replace, sync, write_new
from benchmark.base.parsing import read_text
from benchmark.base.paths import resolve_link
from benchmark.evaluation.judge import Sample
from benchmark.experiment.frames import max_bytes, to_frame, to_parquet, with_measurement
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

__all__ = ["SCHEMA_VERSION", "TEMP_PREFIX", "Cell", "DamagedCell", "Record", "Status", "Store"]

OWN_DIRECTORIES = ("cells", "figures")

NO_LOCK_ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Error numbers of `flock` on a file system without locks."""

_TEMPORARY_PATTERN = f"{TEMP_PREFIX}{'[0-9a-f]' * 16}"
"""Glob pattern of the random temporary name under which a single file is written."""

_OLD_SAMPLES = f"{TEMP_PREFIX}samples"
"""Name of the copy of the old samples while a measurement of the cell is being replaced."""


class DamagedCell(Exception):
    """Raised when a cell exists but cannot be read.

    Attributes:
        file: the damaged file, relative to the run directory.
        reason: what is wrong with the file.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A finished cell as read from the run directory.

    Attributes:
        record: the record of the cell.
        samples: one row per private image.
    """

    record: Record
    samples: pd.DataFrame


class Store:
    """A run directory. `path` need not exist yet. If `path` is a link, the target of the link is the run directory."""

    def __init__(self, path: Path) -> None:
        self.path = resolve_link(path)
        self.cells = self.path / "cells"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the directory for this process, and remove incomplete files that a killed process left.

        Raises:
            UserError: another process holds the lock, the directory cannot be written, or a part of it is a link.
        """
        self.check()
        lock = None
        try:
            try:
                self.cells.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                self._lock(lock)
                self._remove_leftovers()
            except OSError as error:
                raise UserError(f"cannot write to {self.path}: {_reason(error)}") from error
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def check(self) -> None:
        """Check that `cells` and `figures` are real directories or absent.

        If one were a link, GIDBench might overwrite or remove files that belong to somebody else.

        Raises:
            UserError: `cells` or `figures` is a link or no directory.
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
        """Write a cell and replace an earlier outcome with the same identity.

        Raises:
            UserError: the cell cannot be written. All cells that were written before are kept.
        """
        aside, target = self.cells / f"{TEMP_PREFIX}{record.identity}", self.cells / record.identity
        content = to_parquet(samples)
        try:
            self._roll_back_save(aside)
            try:
                aside.mkdir()
                write_new(aside / "samples.parquet", content)
                write_new(aside / "record.json", _record_content(record, content))
                sync(aside)
                if real_directory(target):
                    target.rename(aside / target.name)
                else:
                    remove(target)
                aside.rename(target)
                sync(self.cells)
                remove(target / target.name)
            finally:
                self._roll_back_save(aside)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.cells}: {_reason(error)}; finished cells are kept, the same command goes on from there"
            ) from error

    def amend(self, cell: Cell, name: str, values: Sequence[float | None]) -> None:
        """Add or replace one measurement in a stored cell. If the process is killed, the old or the new cell remains.

        Args:
            cell: the cell as it was read.
            name: name of the measurement.
            values: one value per image, in the order of the cell's samples.

        Raises:
            UserError: the cell cannot be written, or it has changed since it was read.
        """
        place = self.cells / cell.record.identity
        try:
            before = _matching_samples(place, cell.record)
            after = with_measurement(before, name, values)
            replace(place / _OLD_SAMPLES, before)
            replace(place / "samples.parquet", after)
            replace(place / "record.json", _record_content(cell.record, after))
            (place / _OLD_SAMPLES).unlink()
        except (OSError, Damaged) as error:
            reason = _reason(error) if isinstance(error, OSError) else error
            raise UserError(f"cannot write to {place}: {reason}; every cell is kept") from error

    def read(self, identity: str) -> Cell | None:
        """Return a cell, None if it is absent.

        Raises:
            DamagedCell: a file of the cell differs from what was saved, or has another version.
        """
        place = self.cells / identity
        name = place.name
        try:
            if not os.path.lexists(place):
                return None
            if not real_directory(place):
                raise Damaged("it is not a directory")
            name = f"{place.name}/record.json"
            record = to_record(_read_text(place / "record.json"), identity)
            name = f"{place.name}/samples.parquet"
            return Cell(record, to_frame(_matching_samples(place, record), record))
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError from error
            raise DamagedCell(f"cells/{name}", _reason(error)) from error
        except Damaged as error:
            raise DamagedCell(f"cells/{name}", str(error)) from error

    def record(self, identity: str) -> Record | None:
        """Return the record of a cell, None if the cell is absent, damaged or of another version."""
        try:
            cell = self.read(identity)
        except DamagedCell:
            return None
        return cell.record if cell else None

    def samples(self, identity: str) -> pd.DataFrame:
        """Return the samples of a cell, one row per image. `original` and `reconstruction` are (H, W, C) float32 arrays.

        Raises:
            DamagedCell: a file of the cell differs from what was saved, or has another version.
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
        """Write the plan of the latest command to `run.json`.

        Args:
            title: heading of tables and figures.
            success_db: PSNR in dB from which an image counts as recovered.
            settings: hyper-parameters that the grid or the command set.
            identities: identities of the planned cells, in order.
            floors: labels of the attacks that serve as floors, None for all controls among the cells.

        Raises:
            UserError: the file cannot be written.
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
        """Return the plan that `save_plan` wrote.

        Raises:
            UserError: `run.json` is missing or cannot be read, so this is no run directory.
        """
        try:
            return to_plan(_read_text(self.path / "run.json"))
        except (Damaged, OSError) as error:
            raise UserError(f"{self.path} is no run directory (it has no readable run.json)") from error

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {self.path}; wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCK_ERRORS:
                raise
            remark(f"{self.path} lies on a file system without locks; nothing keeps a second run from writing there")

    def _remove_leftovers(self) -> None:
        """Remove leftovers of a killed process, and anything that has a cell's name but is no directory.

        Files with other names do not belong to GIDBench and stay.
        """
        for path in self.path.glob(_TEMPORARY_PATTERN):
            remove(path)
        for path in list(self.cells.iterdir()):
            if IDENTITY.fullmatch(path.name.removeprefix(TEMP_PREFIX)):
                if path.name.startswith(TEMP_PREFIX):
                    self._roll_back_save(path)
                elif not real_directory(path):
                    remove(path)
                else:
                    self._roll_back_amend(path)

    def _roll_back_amend(self, place: Path) -> None:
        """Remove leftovers of a killed `amend`. The samples that match the record are restored first."""
        for leftover in place.glob(_TEMPORARY_PATTERN):
            remove(leftover)
        before = place / _OLD_SAMPLES
        if not os.path.lexists(before):
            return
        try:
            record = to_record(_read_text(place / "record.json"), place.name)
            replace(place / "samples.parquet", _matching_samples(place, record))
            remove(before)
        except (OSError, Damaged):  # `read` reports the damage
            return

    def _roll_back_save(self, aside: Path) -> None:
        """Remove an incomplete cell, and restore the cell that it was about to replace."""
        replaced = aside / aside.name.removeprefix(TEMP_PREFIX)
        target = self.cells / replaced.name
        if real_directory(aside) and real_directory(replaced) and not os.path.lexists(target):
            replaced.rename(target)
        remove(aside)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        Damaged: the file is not a text file, or it is too large.
        OSError: the file cannot be opened.
    """
    try:
        return read_text(path, "")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise Damaged("it is not a text file, or it is too large") from error


def _record_content(record: Record, samples: bytes) -> bytes:
    """Return the content of `record.json` with the checksums of the samples and of the record."""
    values = dataclasses.asdict(dataclasses.replace(record, samples_digest=digest(samples)))
    return to_json({**values, "checksum": checksum(values)})


def _matching_samples(place: Path, record: Record) -> bytes:
    """Return the content of the samples file that matches the record.

    Raises:
        Damaged: no file matches the record.
    """
    content = _read_bytes(place / "samples.parquet", max_bytes(record))
    if digest(content) != record.samples_digest and os.path.lexists(place / _OLD_SAMPLES):
        content = _read_bytes(place / _OLD_SAMPLES, max_bytes(record))
    if digest(content) != record.samples_digest:
        raise Damaged("its checksum differs")
    return content


def _read_bytes(path: Path, limit: int) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise Damaged("it is not a file")
    if path.stat().st_size > limit:
        raise Damaged("it is larger than a file of the cell's images can be")
    return path.read_bytes()
