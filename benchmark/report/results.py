"""A run as the report reads it: a row per finished cell, and a row per image."""

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
"""The columns that name a cell's place in the grid, trial excepted."""

SCENE = ["dataset", "scenario", "model"]
"""The columns that name a table of its own; within it, attacks meet defenses."""

PAIR = ["trial", "victim", "image"]
"""What identifies a private image within a scene: the same one under every attack and defense."""


@dataclass(frozen=True)
class Results:
    """A run as it was read: its title, threshold, planned and finished cells, a row per cell and a row per image.

    Attributes:
        title: heads every table and figure.
        success_db: PSNR from which an image counts as recovered.
        planned: number of cells of the latest plan.
        cells: a row per finished cell, axes and outcome.
        samples: a row per image of these, axes, `trial`, measurements and pictures.
        notes: what a table must say of its numbers.
        damage: of these, what could not be read.
        floors: the floors that the latest plan has, None where it does not say.
    """

    title: str
    success_db: float
    planned: int
    cells: pd.DataFrame
    samples: pd.DataFrame
    notes: Sequence[str]
    damage: Sequence[str] = ()
    floors: frozenset[str] | None = None


def read(store: Store) -> Results:
    """Read the latest plan's finished cells. What cannot be read counts as missing, and a note names it.

    Raises:
        UserError: it is no run directory, or memory runs out.
    """
    plan = store.plan()
    identities = list(dict.fromkeys(plan["cells"]))
    try:
        found, damage = _readable(store, identities)
        records = [cell.record for cell in found]
        cells = pd.DataFrame([{**_axes(record), **_outcome(record)} for record in records])
        frames = [
            cell.samples.assign(trial=cell.record.config["trial"], control=cell.record.control, **_own(cell.record))
            for cell in found
            if cell.record.status.judged and len(cell.samples)
        ]
        samples = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    except MemoryError as error:
        raise UserError(f"the memory does not suffice to read {store.path}; the records are kept") from error
    unread = notes_on_damage(damage)
    notes = [
        *unread,
        *notes_on_samples(samples, [*SCENE, "defense", "attack"]),
        *notes_on_settings(plan["settings"]),
        *notes_on_measurements(found),
        *notes_on_records(records),
    ]
    return Results(plan["title"], plan["success_db"], len(identities), cells, samples, notes, unread, _floors(plan))


def _readable(store: Store, identities: Sequence[str]) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return the cells that can be read, and each file that cannot with the reason."""
    found: dict[tuple[object, ...], Cell] = {}
    damage = []
    for identity in identities:
        try:
            cell = store.read(identity)
        except DamagedCell as error:
            damage.append((error.file, error.reason))
            continue
        if cell is None:
            continue
        place = (*(_axes(cell.record)[name] for name in (*SCENE, "defense", "attack")), cell.record.config["trial"])
        if place in found:
            damage.append((f"cells/{identity}/record.json", f"it has the axes of cells/{found[place].record.identity}"))
        else:
            found[place] = cell
    return list(found.values()), damage


def _floors(plan: dict[str, Any]) -> frozenset[str] | None:
    return None if plan.get("floors") is None else frozenset(plan["floors"])


def _axes(record: Record) -> dict[str, Any]:
    """Return the values of `AXES`."""
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


def _own(record: Record) -> dict[str, Any]:
    """The axes beside an image, which has a timestep of its own."""
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
        "epsilon_round": float(privacy.get("epsilon_round", "nan")),
        "epsilon_total": float(privacy.get("epsilon_total", "nan")),
        "delta": float(privacy.get("delta", "nan")),
    }


def by_image(samples: pd.DataFrame) -> pd.DataFrame:
    """PSNR and source of each image, by `PAIR`."""
    return samples.set_index(PAIR)[["psnr", "source"]]


def select(frame: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    if frame.empty:
        return frame
    mask = np.logical_and.reduce([frame[name] == value for name, value in values.items()])
    return frame[mask]
