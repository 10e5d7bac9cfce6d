"""The leaderboard: one row per dataset x scenario x model x defense x attack, over all trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmark.evaluation import metrics
from benchmark.evaluation.metric import Group, Level
from benchmark.experiment.grid import ORACLE
from benchmark.experiment.store import Status
from benchmark.report.results import AXES, PAIR, SCENE, Results, by_image, select


def leaderboard(results: Results) -> pd.DataFrame:
    """Return a row per attack under each defense of each scene.

    Columns: `control`, for who draws them, and those of `leaderboard.csv`: status and reason, axes, counts of images, and the
    columns of every metric. What has no value is NaN.

    Ranked within a scene: defenses under which the attacker knows least first, among those the leakiest first (by the best
    gain of any attack), and under a defense the attack with the best gain first.
    """
    keys = [*SCENE, "defense", "attack"]
    floors = floors_of(results)
    rows = []
    for key, cells in results.cells.groupby(keys, sort=False):
        chosen = select(results.samples, dict(zip(keys, key, strict=True)))
        group = Group(cells, _with_gain(chosen, floors.get(key[:-1])))
        axes = {name: cells.iloc[0][name] for name in AXES}
        rows.append({"control": cells.control.iloc[0], **_status(cells), **axes, **_counts(group), **_measurements(group)})
    return _ranked(pd.DataFrame(rows))


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


def _status(cells: pd.DataFrame) -> dict[str, Any]:
    """The worst status of the trials, with its reason."""
    order = list(Status)
    worst = max(cells.status, key=order.index)
    reasons = [reason for reason in cells.reason[cells.status == worst] if reason]
    return {"status": str(worst), "reason": reasons[0] if reasons else ""}


def _counts(group: Group) -> dict[str, int]:
    return {"n_ok": len(group.ok), "n_total": int(group.cells.n_total.sum())}


def _measurements(group: Group) -> dict[str, float]:
    """Return what every metric says of a row; where all images are lost there is nothing to say of them."""
    row: dict[str, float] = {}
    for metric in metrics.METRICS:
        silent = metric.level is Level.IMAGE and group.ok.empty
        values = [np.nan] * len(metric.columns) if silent else metric.summarise(group)
        row |= dict(zip(metric.columns, values, strict=True))
    return row


def _with_gain(samples: pd.DataFrame, floor: pd.DataFrame | None) -> pd.DataFrame:
    """Return the samples with `gain`: PSNR minus that of the floor for the same image, NaN where there is none."""
    if samples.empty or floor is None:
        return samples.assign(gain=np.nan)
    least = by_image(floor).psnr.rename("least")
    return samples.assign(gain=samples.psnr - samples.join(least, on=PAIR, validate="one_to_one").least)


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
