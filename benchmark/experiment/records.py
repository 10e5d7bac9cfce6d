"""Records of cells and plans of runs as JSON, checked when they are read.

A file that somebody edited or a disk damaged raises `Damaged`, so that its cell counts as missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError, shown
from benchmark.base.files import digest
from benchmark.base.parsing import parse_json
from benchmark.base.ranges import MAX_NUMBER
from benchmark.outlook import Prediction

SCHEMA_VERSION = 3

LATER_FIELDS = frozenset({"expected", "expected_reason"})
"""Fields that records of version 0.2.0 and of earlier versions lack."""

MAX_IMAGES = 100_000
"""Maximum number of private images of a cell in a record. A grid never has so many."""

IDENTITY = re.compile(r"[0-9a-f]{32}")
"""Pattern of a cell's identity, which is also the name of its directory."""


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
        """Return whether a resumed run keeps the cell. A failed cell is always run again."""
        return self in (Status.OK, Status.SKIPPED, Status.DIVERGED)

    @property
    def judged(self) -> bool:
        """Return whether the cell has judged images, which tables summarise."""
        return self in (Status.OK, Status.DIVERGED)


class Damaged(Exception):
    """Raised when a file does not hold what GIDBench wrote. The message says what differs."""


@dataclass(frozen=True)
class Record:
    """The outcome of one cell without its samples. `record.json` has the same fields.

    Attributes:
        identity: hash of everything that can change the result.
        status: how the cell ended.
        reason: why the cell has this status; for `ok` a note, or empty.
        config: the resolved configuration of the cell.
        knows: what the attack was granted, except for the prior.
        adaptive: whether the attack uses public parameters that the defense discloses.
        control: whether the attack is a control or the oracle.
        budget: number of evaluations that the attack could spend on one victim.
        n_total: number of private images in the cell.
        seconds: run time of the attack on all victims, None if it did not finish.
        peak_mib: peak memory of tensors on the GPU in MiB while the cell ran, None on a CPU.
        privacy: the defense's privacy guarantee, None if it has none.
        lpips_missing: why LPIPS could not be measured when the cell ran, None if it could.
        environment: versions, machine and settings.
        expected: what the attack was expected to reach before it ran: `recovered`, `not recovered` or `unknown`; None for a
            control, a cell that ended before, and a record of version 0.2.0 or before.
        expected_reason: why that was expected; empty if nothing was.
        samples_digest: checksum of the cell's `samples.parquet`, filled in when the cell is saved.
        checksum: checksum of all other fields, filled in when the cell is saved.
        schema: version of the record's format.
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
    expected: str | None = None
    expected_reason: str = ""
    samples_digest: str = field(default="", compare=False)
    checksum: str = field(default="", compare=False)
    schema: int = SCHEMA_VERSION

    @property
    def unmeasured(self) -> dict[str, str]:
        """Return the metrics that could not be measured when the cell ran, by name, with the reason."""
        return {"lpips": self.lpips_missing} if self.lpips_missing else {}


def to_json(values: Mapping[str, Any]) -> bytes:
    """Return the values as JSON that `parse_json` can read."""
    return json.dumps(_json_value(values), indent=1, sort_keys=True, allow_nan=False).encode()


def checksum(values: Mapping[str, Any]) -> str:
    """Return the checksum of all fields of a record except `checksum`."""
    return digest(to_json({name: value for name, value in values.items() if name != "checksum"}))


def writable(text: str) -> str:
    """Return the text with `?` in place of lone surrogates, which UTF-8 cannot encode.

    They occur in file names whose bytes are not UTF-8.
    """
    return text.encode("utf-8", errors="replace").decode("utf-8")


def to_record(text: str, identity: str) -> Record:
    """Parse the text of a `record.json`.

    Args:
        text: the content of the file.
        identity: the identity of the expected cell.

    Raises:
        Damaged: the text is no JSON, has a wrong format or checksum, or is the record of another cell.
    """
    try:
        values = parse_json(text, "it")
    except UserError as error:
        raise Damaged(str(error)) from error
    if isinstance(values, dict) and _is_integer(values.get("schema")) and values["schema"] != SCHEMA_VERSION:
        raise Damaged(f"its format has version {values['schema']}, but this GIDBench reads version {SCHEMA_VERSION}")
    _check_form(values, RECORD_FORM, "it")
    if set(values) | LATER_FIELDS != {entry.name for entry in dataclasses.fields(Record)}:
        raise Damaged("its fields are not the fields of a record")
    if values["identity"] != identity:
        raise Damaged("it is the record of another cell")
    scenario = values["config"]["scenario"]
    if scenario["batch_size"] * scenario["local_steps"] * scenario["clients"] > MAX_NUMBER:
        raise Damaged("the number of images of an update is too large")
    if values["checksum"] != checksum(values):
        raise Damaged("its checksum differs")
    return Record(**{**values, "status": Status(values["status"])})


def to_plan(text: str) -> dict[str, Any]:
    """Parse the text of a `run.json` and return the plan.

    Raises:
        Damaged: the text is no JSON or has a wrong format.
    """
    try:
        values = parse_json(text, "it")
    except UserError as error:
        raise Damaged(str(error)) from error
    _check_form(values, PLAN_FORM, "it")
    plan: dict[str, Any] = values
    return plan


def _json_value(value: Any) -> Any:
    """Convert a value to what JSON can hold.

    JSON has no infinity. An infinite epsilon is therefore written as text, which `float` can read.
    """
    if isinstance(value, Mapping):
        return {writable(str(key)): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | Path):
        return writable(str(value))
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and _is_integer(value) and 0 <= value <= MAX_NUMBER


def _is_evaluation_count(value: object) -> bool:
    return isinstance(value, int) and _is_integer(value) and value >= 0


def _is_count(value: object) -> bool:
    return _is_natural(value) and value != 0


def _is_image_count(value: object) -> bool:
    return _is_count(value) and value <= MAX_IMAGES  # type: ignore[operator]


def _is_nonnegative(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value >= 0


def _is_epsilon(value: object) -> bool:
    """Return whether a value is a number from 0 on, or the text of a number that JSON cannot hold."""
    return _is_nonnegative(value) or value in ("inf", "nan")


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_identity(value: object) -> bool:
    return isinstance(value, str) and IDENTITY.fullmatch(value) is not None


def _is_identity_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_identity, value))


def _is_status(value: object) -> bool:
    return isinstance(value, str) and value in set(Status)


def _is_prediction(value: object) -> bool:
    return isinstance(value, str) and value in set(Prediction)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


@dataclass(frozen=True)
class _Optional:
    """A form whose value may be null. In a mapping, its key may also be missing."""

    form: Form


Form = Callable[[object], bool] | Mapping[str, Any] | _Optional
"""The required form of a value: a check, or a mapping with a form for each required key. More keys are allowed."""

_NAMED_FORM = {"name": _is_text, "remarks": _Optional(_is_text_list)}

CONFIG_FORM: Form = {
    "dataset": _NAMED_FORM,
    "scenario": {
        **dict.fromkeys(("image_size", "batch_size", "local_steps", "clients"), _is_count),
        "timesteps": _is_text,
        "sampling": _is_text,
        "sample_rate": _is_nonnegative,
        "local_lr": _is_nonnegative,
        "order": _is_text,
    },
    "summed_clients": _Optional(_is_count),
    "model": {**_NAMED_FORM, "state": _is_text, "prediction_type": _is_text, "prior": _is_text},
    "defense": {"name": _is_text},
    "attack": {"name": _is_text},
    "trial": _is_natural,
    "victims": _is_count,
}
"""The form of the parts of a cell's configuration that reports read."""

PRIVACY_FORM: Form = {
    **dict.fromkeys(("epsilon_round", "epsilon_total"), _is_epsilon),
    **dict.fromkeys(("epsilon_round_rdp", "epsilon_total_rdp"), _Optional(_is_epsilon)),
    **dict.fromkeys(("delta", "sample_rate"), _is_nonnegative),
    "sampling": _Optional(_is_text),
    "rounds": _is_count,
    **dict.fromkeys(("adjacency", "accountant"), _is_text),
}

RECORD_FORM: Form = {
    "identity": _is_identity,
    "status": _is_status,
    "reason": _is_text,
    "config": CONFIG_FORM,
    "knows": _is_text,
    "adaptive": _is_bool,
    "control": _is_bool,
    "budget": _is_evaluation_count,
    "n_total": _is_image_count,
    "seconds": _Optional(_is_nonnegative),
    "peak_mib": _Optional(_is_nonnegative),
    "privacy": _Optional(PRIVACY_FORM),
    "lpips_missing": _Optional(_is_text),
    "environment": _is_mapping,
    "expected": _Optional(_is_prediction),
    "expected_reason": _Optional(_is_text),
    "samples_digest": _is_text,
    "checksum": _is_text,
    "schema": _is_integer,
}

PLAN_FORM: Form = {
    "title": _is_text,
    "success_db": _is_number,
    "settings": _is_mapping,
    "cells": _is_identity_list,
    "floors": _Optional(_is_text_list),
}


def _check_form(value: object, form: Form, place: str) -> None:
    """Check that a value has the required form.

    Raises:
        Damaged: the value has another form; the message names its place.
    """
    if isinstance(form, _Optional):
        if value is not None:
            _check_form(value, form.form, place)
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            raise Damaged(f"{place} is no mapping")
        for key, inner in form.items():
            if key not in value and not isinstance(inner, _Optional):
                raise Damaged(f"{place} lacks '{key}'")
            _check_form(value.get(key), inner, key)
    elif not form(value):
        raise Damaged(f"{place} cannot be {shown(value)}")
