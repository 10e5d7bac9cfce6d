"""The run directory. One directory per cell, complete or absent: it is written aside and renamed into place.

RUN/run.json                        title, and the cells of the latest plan in their order
RUN/cells/IDENTITY/record.json      the record, with the whole resolved configuration
RUN/cells/IDENTITY/samples.parquet  a row per private image, originals and reconstructions included
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from benchmark.errors import UserError
from benchmark.judge import Sample

SCHEMA_VERSION = 2

ASIDE = ".writing-"
"""How the name of a directory begins that is not a cell yet."""

PICTURES = ("original", "reconstruction")


class Status(StrEnum):
    """How a cell ended, from best to worst."""

    OK = "ok"
    SKIPPED = "skipped"
    DIVERGED = "diverged"
    TIMEOUT = "timeout"
    OOM = "oom"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether a resumed run takes it as done; a failure is always tried again."""
        return self in (Status.OK, Status.SKIPPED, Status.DIVERGED)


@dataclass(frozen=True)
class Record:
    """One cell's outcome, without its samples. Field by field what `record.json` holds.

    Attributes:
        identity: hash of everything that can change the answer.
        status: how it ended.
        reason: why, where it is not simply ok.
        config: the resolved configuration of the cell.
        knows: what the attack was granted.
        adaptive: whether the attack used public parameters of the defense.
        control: whether it is a floor or the ceiling.
        budget: evaluations that the attack could spend on one victim.
        n_total: private images in the cell.
        seconds: the attack's own time on all victims.
        peak_mib: most memory in use while the attack ran, of the process on a CPU, of the tensors on a GPU.
        privacy: the defense's guarantee.
        lpips_missing: why LPIPS could not be measured.
        environment: what it was made with.
        schema: version of this record's form.
    """

    identity: str
    status: Status
    reason: str
    config: dict[str, Any]
    knows: str
    adaptive: bool
    control: bool
    budget: int
    n_total: int
    seconds: float | None
    peak_mib: float | None
    privacy: dict[str, Any] | None
    lpips_missing: str | None
    environment: dict[str, Any]
    schema: int = SCHEMA_VERSION


class Store:
    """A run directory; `path` need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = path / "cells"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the directory for one writing process, and clear what a killed one left half-written.

        Raises:
            UserError: another process holds it, or it cannot be written.
        """
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another run is writing to {self.path}; wait for it, or choose another --out") from None
            for leftover in self.cells.glob(f"{ASIDE}*"):
                self._discard(leftover)
            yield

    def save(self, record: Record, samples: Sequence[Sample]) -> None:
        """Write a cell, replacing an earlier outcome of the same identity.

        Raises:
            UserError: the disk does not take it; everything written before stays.
        """
        aside, target = self.cells / f"{ASIDE}{record.identity}", self.cells / record.identity
        try:
            try:
                aside.mkdir()
                _frame(samples).to_parquet(aside / "samples.parquet", index=False)
                with (aside / "samples.parquet").open("rb") as file:
                    os.fsync(file.fileno())
                _write_json(aside / "record.json", dataclasses.asdict(record))
                if target.exists():
                    target.rename(aside / target.name)
                aside.rename(target)
                shutil.rmtree(target / target.name, ignore_errors=True)
            finally:
                self._discard(aside)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.cells}: {error.strerror or error}; finished cells are kept, "
                "the same command goes on from there"
            ) from error

    def _discard(self, aside: Path) -> None:
        """Clear what was not written to its end, and put the cell back that it was about to replace."""
        replaced = aside / aside.name.removeprefix(ASIDE)
        target = self.cells / replaced.name
        if replaced.is_dir() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(aside, ignore_errors=True)

    def record(self, identity: str) -> Record | None:
        """The record of a cell, None where there is none that can be read in this version's form."""
        try:
            pyarrow.parquet.read_metadata(self.cells / identity / "samples.parquet")
            values = json.loads((self.cells / identity / "record.json").read_text())
            if values["schema"] != SCHEMA_VERSION:
                return None
            return Record(**{**values, "status": Status(values["status"])})
        except (OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException):
            return None

    def samples(self, identity: str) -> pd.DataFrame:
        """The rows of a cell; `original` and `reconstruction` are (H, W, C) float32 arrays again."""
        frame = pd.read_parquet(self.cells / identity / "samples.parquet")
        for column in PICTURES:
            frame[column] = [
                np.frombuffer(raw, dtype="<f4").reshape(shape) for raw, shape in zip(frame[column], frame["shape"], strict=True)
            ]
        return frame.drop(columns="shape")

    def save_plan(self, title: str, success_db: float, settings: Mapping[str, object], identities: Sequence[str]) -> None:
        """Note what the latest command planned: heading, threshold, hyper-parameters that it set, and cells in order."""
        plan = {"title": title, "success_db": success_db, "settings": dict(settings), "cells": list(identities)}
        aside = self.path / ".run.json"
        _write_json(aside, plan)
        aside.rename(self.path / "run.json")

    def plan(self) -> dict[str, Any]:
        """What `save_plan` noted.

        Raises:
            UserError: this is no run directory.
        """
        try:
            plan: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            raise UserError(f"{self.path} is no run directory (it has no readable run.json)") from None
        return plan


def _frame(samples: Sequence[Sample]) -> pd.DataFrame:
    columns = [f.name for f in dataclasses.fields(Sample)]
    rows = [{name: getattr(sample, name) for name in columns} for sample in samples]
    frame = pd.DataFrame(rows, columns=columns)
    frame["shape"] = [list(sample.original.shape) for sample in samples]
    for column in PICTURES:
        frame[column] = [np.ascontiguousarray(picture, dtype="<f4").tobytes() for picture in frame[column]]
    return frame


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(_plain(values), file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """JSON has no infinity: epsilon without noise is written as text, read back by `float`."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value
