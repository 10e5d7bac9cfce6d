"""Read a run for the report: one row per finished cell, and one row per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmark.base.errors import UserError
from benchmark.experiment.store import Cell, DamagedCell, Record, Store
from benchmark.report.notes import (
    notes_on_damage,
    notes_on_measurements,
    notes_on_records,
    notes_on_samples,
    notes_on_settings,
)
from benchmark.scenario import label

AXES = (
    *("dataset", "scenario", "image_size", "batch_size", "local_steps", "clients", "timestep"),
    *("model", "model_state", "prediction_type", "prior", "defense", "attack", "knows", "adaptive", "budget"),
)
"""The columns that identify a cell of the grid, except its trial."""

SCENE_COLUMNS = ["dataset", "scenario", "model"]
"""The columns that identify one table. The rows of a table are pairs of attack and defense."""

IMAGE_KEY = ["trial", "victim", "image"]
"""The columns that identify a private image within a scene. The image is the same under every attack and defense."""


@dataclass(frozen=True)
class Results:
    """A run as the report reads it.

    Attributes:
        title: title of every table and figure.
        success_db: PSNR in dB from which an image counts as recovered.
        planned: number of cells in the latest plan.
        cells: one row per finished cell: axes, status, reason, counts and privacy.
        samples: one row per judged image of these cells: axes, `trial`, measurements and pictures.
        notes: sentences that accompany every table.
        damage: those notes that name files which could not be read.
        floors: names of the floors in the latest plan, None if the plan does not name them.
    """

    title: str
    success_db: float
    planned: int
    cells: pd.DataFrame
    samples: pd.DataFrame
    notes: Sequence[str]
    damage: Sequence[str] = ()
    floors: frozenset[str] | None = None


def read_results(store: Store) -> Results:
    """Read the finished cells of the latest plan. A cell that cannot be read counts as missing, and a note names it.

    Raises:
        UserError: the store is not a run directory, or memory runs out.
    """
    plan = store.plan()
    identities = list(dict.fromkeys(plan["cells"]))
    try:
        readable, damage = _read_cells(store, identities)
        records = [cell.record for cell in readable]
        cells = pd.DataFrame([{**_axes(record), **_outcome(record)} for record in records])
        frames = [
            cell.samples.assign(trial=cell.record.config["trial"], control=cell.record.control, **_image_axes(cell.record))
            for cell in readable
            if cell.record.status.judged and len(cell.samples)
        ]
        samples = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    except MemoryError as error:
        raise UserError(f"the memory does not suffice to read {store.path}; the records are kept") from error
    damage_notes = notes_on_damage(damage)
    notes = [
        *damage_notes,
        *notes_on_samples(samples, [*SCENE_COLUMNS, "defense", "attack"]),
        *notes_on_settings(plan["settings"]),
        *notes_on_measurements(readable),
        *notes_on_records(records),
    ]
    return Results(plan["title"], plan["success_db"], len(identities), cells, samples, notes, damage_notes, _floors(plan))


def _read_cells(store: Store, identities: Sequence[str]) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return the cells that can be read, and (file, reason) for each file that cannot."""
    readable: dict[tuple[object, ...], Cell] = {}
    damage = []
    for identity in identities:
        try:
            cell = store.read(identity)
        except DamagedCell as error:
            damage.append((error.file, error.reason))
            continue
        if cell is None:
            continue
        place = (*(_axes(cell.record)[name] for name in (*SCENE_COLUMNS, "defense", "attack")), cell.record.config["trial"])
        if place in readable:
            damage.append((f"cells/{identity}/record.json", f"it has the axes of cells/{readable[place].record.identity}"))
        else:
            readable[place] = cell
    return list(readable.values()), damage


def _floors(plan: dict[str, Any]) -> frozenset[str] | None:
    return None if plan.get("floors") is None else frozenset(plan["floors"])


def _axes(record: Record) -> dict[str, Any]:
    """Return the value of each of `AXES`."""
    config = record.config
    scenario, model = config["scenario"], config["model"]
    return {
        "dataset": config["dataset"]["name"],
        "scenario": label(scenario),
        "image_size": scenario["image_size"],
        "batch_size": scenario["batch_size"],
        "local_steps": scenario["local_steps"],
        "clients": config.get("summed_clients") or scenario["clients"],
        "timestep": scenario["timesteps"],
        "model": model["name"],
        "model_state": model["state"],
        "prediction_type": model["prediction_type"],
        "prior": model["prior"],
        "defense": config["defense"]["name"],
        "attack": config["attack"]["name"],
        "knows": record.knows,
        "adaptive": record.adaptive,
        "budget": record.budget,
    }


def _image_axes(record: Record) -> dict[str, Any]:
    """Return the axes of an image. The timestep is missing because each image has its own."""
    return {name: value for name, value in _axes(record).items() if name != "timestep"}


def _outcome(record: Record) -> dict[str, Any]:
    privacy = record.privacy or {}
    return {
        "status": record.status,
        "reason": record.reason,
        "control": record.control,
        "n_total": record.n_total,
        "seconds": record.seconds,
        "victims": record.config["victims"],
        "expected": record.expected or "",
        "expected_reason": record.expected_reason or "",
        "epsilon_round": float(privacy.get("epsilon_round", "nan")),
        "epsilon_total": float(privacy.get("epsilon_total", "nan")),
        "delta": float(privacy.get("delta", "nan")),
    }


def by_image(samples: pd.DataFrame) -> pd.DataFrame:
    """Return PSNR and source of each image, with `IMAGE_KEY` as index."""
    return samples.set_index(IMAGE_KEY)[["psnr", "source"]]


def select(frame: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """Return the rows that have the given value in each given column."""
    if frame.empty:
        return frame
    mask = np.logical_and.reduce([frame[name] == value for name, value in values.items()])
    return frame[mask]
