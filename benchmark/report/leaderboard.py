"""The leaderboard: one row per dataset x scenario x model x defense x attack, over all trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmark.base.errors import UserError
from benchmark.experiment.grid import ORACLE
from benchmark.experiment.store import Cell, DamagedCell, Record, Status, Store
from benchmark.report.notes import notes_on_damage, notes_on_records, notes_on_samples, notes_on_settings
from benchmark.report.statistics import median_interval, rate_interval
from benchmark.scenario import label

COLUMNS = (
    "status",
    "reason",
    "dataset",
    "scenario",
    "image_size",
    "batch_size",
    "local_steps",
    "clients",
    "timestep",
    "model",
    "model_state",
    "prediction_type",
    "prior",
    "defense",
    "attack",
    "knows",
    "adaptive",
    "budget",
    "n_ok",
    "n_total",
    "psnr_median",
    "psnr_mean",
    "psnr_ci_low",
    "psnr_ci_high",
    "psnr_gain",
    "psnr_gain_ci_low",
    "psnr_gain_ci_high",
    "ssim_mean",
    "lpips_mean",
    "mse_mean",
    "success_rate",
    "success_ci_low",
    "success_ci_high",
    "timestep_accuracy",
    "epsilon_round",
    "epsilon_total",
    "delta",
    "seconds_per_victim",
    "evaluations",
    "noise_mse_mean",
)

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


def leaderboard(results: Results) -> pd.DataFrame:
    """A row per attack under each defense of each scene, with all of `COLUMNS`, and `control` for who draws them.

    Ranked within a scene: defenses under which the attacker knows least first, among those the leakiest first (by the best
    gain of any attack), and under a defense the attack with the best gain first.
    """
    keys = [*SCENE, "defense", "attack"]
    floors = floors_of(results)
    rows = []
    for key, cells in results.cells.groupby(keys, sort=False):
        chosen = select(results.samples, dict(zip(keys, key, strict=True)))
        floor = floors.get(key[:-1])
        rows.append({**_status(cells), **_axes_row(cells), **_measure(cells, chosen, floor)})
    return _ranked(pd.DataFrame(rows, columns=[*COLUMNS, "control"]))


def paired_difference(results: Results, first: str, second: str) -> pd.DataFrame:
    """The paired difference in PSNR of two attacks, a row per defense of each scene that both have finished.

    Columns: the scene, `defense`, `n` images of `n_total` that both rebuilt,
    `difference` (median of first minus second, dB), `ci_low`, `ci_high`.
    """
    rows = []
    for key, group in results.samples.groupby([*SCENE, "defense"], sort=False) if len(results.samples) else ():
        a, b = (by_image(group[group.attack == attack]) for attack in (first, second))
        both = a.join(b, rsuffix="_other", how="inner", validate="one_to_one").dropna(subset=["psnr", "psnr_other"])
        if both.empty:
            continue
        difference = (both.psnr - both.psnr_other).tolist()
        low, high = median_interval(difference, both.source.tolist())
        names = dict(zip([*SCENE, "defense"], key, strict=True))
        total = int(select(results.cells, {**names, "attack": first}).n_total.sum())
        rows.append(
            {**names, "n": len(both), "n_total": total, "difference": np.median(difference), "ci_low": low, "ci_high": high}
        )
    return pd.DataFrame(rows, columns=[*SCENE, "defense", "n", "n_total", "difference", "ci_low", "ci_high"])


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    gain = table.psnr_gain.fillna(-np.inf)
    attacks_only = gain.where(~table.control.astype(bool), -np.inf)
    order = {
        "granted": table.knows.str.count(r"\+"),
        "leak": -attacks_only.groupby([table[name] for name in (*SCENE, "defense")]).transform("max"),
        "gain": -gain,
    }
    ranked = table.assign(**order).sort_values([*SCENE, "granted", "leak", "defense", "gain"], kind="stable")
    return ranked.drop(columns=list(order)).reset_index(drop=True)


def _axes(record: Record) -> dict[str, Any]:
    """The columns that name a cell's place in the grid, trial excepted."""
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


def _status(cells: pd.DataFrame) -> dict[str, Any]:
    """The worst status of the trials, with its reason."""
    order = list(Status)
    worst = max(cells.status, key=order.index)
    reasons = [reason for reason in cells.reason[cells.status == worst] if reason]
    return {"status": str(worst), "reason": reasons[0] if reasons else ""}


def _axes_row(cells: pd.DataFrame) -> dict[str, Any]:
    first = cells.iloc[0]
    return {name: first[name] for name in (*COLUMNS, "control") if name in cells and name not in ("status", "reason")}


def _measure(cells: pd.DataFrame, samples: pd.DataFrame, floor: pd.DataFrame | None) -> dict[str, Any]:
    """Everything measured over the images of a row; what has no value there stays NaN."""
    total = int(cells.n_total.sum())
    attempted = (cells.status != Status.SKIPPED).any()
    row: dict[str, Any] = {"n_ok": 0, "n_total": total, "success_rate": 0.0 if attempted else np.nan}
    if samples.empty:
        return row
    ok = samples[samples.status == "ok"]
    success_rate = float(samples.success.sum()) / total  # an image that was lost is an image that was not recovered
    success_low, success_high = rate_interval(success_rate, samples.source.nunique())
    row |= {
        "n_ok": len(ok),
        "success_rate": success_rate,
        "success_ci_low": success_low,
        "success_ci_high": success_high,
        "evaluations": float(samples.evaluations.mean()),
        "seconds_per_victim": float(cells.seconds.sum() / cells.victims[cells.seconds.notna()].sum()),
    }
    if ok.empty:
        return row
    low, high = median_interval(ok.psnr.tolist(), ok.source.tolist())
    known = ok.timestep_error.dropna()
    row |= {
        "psnr_median": float(ok.psnr.median()),
        "psnr_mean": float(ok.psnr.mean()),
        "psnr_ci_low": low,
        "psnr_ci_high": high,
        "ssim_mean": float(ok.ssim.mean()),
        "lpips_mean": float(pd.to_numeric(ok.lpips).mean()),
        "mse_mean": float(ok.mse.mean()),
        "timestep_accuracy": float((known == 0).mean()) if len(known) else np.nan,
        "noise_mse_mean": float(pd.to_numeric(ok.noise_mse).mean()),
    }
    if floor is not None:
        row |= _gain(ok, floor)
    return row


def _gain(ok: pd.DataFrame, floor: pd.DataFrame) -> dict[str, float]:
    """The paired gain in PSNR over the floor: median and its interval."""
    both = by_image(ok).join(by_image(floor), rsuffix="_floor", how="inner", validate="one_to_one")
    gain = (both.psnr - both.psnr_floor).tolist()
    if not gain:
        return {}
    low, high = median_interval(gain, both.source.tolist())
    return {"psnr_gain": float(np.median(gain)), "psnr_gain_ci_low": low, "psnr_gain_ci_high": high}


def floors_of(results: Results) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Return the rows of the better floor (by median PSNR) of each scene and defense; none where a floor is incomplete.

    A floor is complete where it has every image that any attack has there, or was skipped, as `prior_sample` is where no prior
    is granted.
    """
    cells = results.cells[results.cells.control & (results.cells.attack != ORACLE)]
    planned = set(cells.attack) if results.floors is None else results.floors
    found = {}
    for key, group in cells.groupby([*SCENE, "defense"], sort=False):
        rows = select(results.samples, dict(zip([*SCENE, "defense"], key, strict=True)))
        if rows.empty:
            continue
        images = len(rows[PAIR].drop_duplicates())
        floors = rows[rows.control & (rows.attack != ORACLE) & (rows.status == "ok")]
        complete = {name for name, own in floors.groupby("attack") if len(own) == images}
        if complete and planned <= complete | set(group.attack[group.status == Status.SKIPPED]):
            found[key] = floors[floors.attack == floors.groupby("attack").psnr.median().idxmax()]
    return found


def by_image(samples: pd.DataFrame) -> pd.DataFrame:
    """PSNR and source of each image, by `PAIR`."""
    return samples.set_index(PAIR)[["psnr", "source"]]


def select(frame: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    if frame.empty:
        return frame
    mask = np.logical_and.reduce([frame[name] == value for name, value in values.items()])
    return frame[mask]
