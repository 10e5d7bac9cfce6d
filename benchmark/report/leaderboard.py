"""Make the leaderboard: one row per dataset x scenario x model x defense x attack, over all trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmark.evaluation import metrics
from benchmark.evaluation.metric import Group, Level
from benchmark.experiment.grid import ORACLE
from benchmark.experiment.store import Status
from benchmark.report.expected import expected
from benchmark.report.results import AXES, IMAGE_KEY, SCENE_COLUMNS, Results, by_image, select


def leaderboard(results: Results) -> pd.DataFrame:
    """Return a row per attack under each defense of each scene.

    Columns: `control` (for the figures) and the columns of `leaderboard.csv`: status and reason, axes, counts of images, the
    columns of every metric, and what was expected. A missing value is NaN.

    Within a scene, three keys rank the rows. Defenses that grant the attack least come first. Among them, defenses that leak
    most come first, by the best gain of any attack. Under one defense, the attack with the best gain comes first.
    """
    keys = [*SCENE_COLUMNS, "defense", "attack"]
    floors = better_floors(results)
    rows = []
    for key, cells in results.cells.groupby(keys, sort=False):
        samples = select(results.samples, dict(zip(keys, key, strict=True)))
        group = Group(cells, _with_gain(samples, floors.get(key[:-1])))
        axes = {name: cells.iloc[0][name] for name in AXES}
        measured = {**_counts(group), **_measurements(group), **expected(cells)}
        rows.append({"control": cells.control.iloc[0], **_status(cells), **axes, **measured})
    return _ranked(pd.DataFrame(rows))


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    gain = table.psnr_gain.fillna(-np.inf)
    attacks_only = gain.where(~table.control.astype(bool), -np.inf)
    order = {
        "granted": table.knows.str.count(r"\+"),
        "leak": -attacks_only.groupby([table[name] for name in (*SCENE_COLUMNS, "defense")]).transform("max"),
        "gain": -gain,
    }
    ranked = table.assign(**order).sort_values([*SCENE_COLUMNS, "granted", "leak", "defense", "gain"], kind="stable")
    return ranked.drop(columns=list(order)).reset_index(drop=True)


def _status(cells: pd.DataFrame) -> dict[str, Any]:
    """Return the worst status of the trials and its reason."""
    order = list(Status)
    worst = max(cells.status, key=order.index)
    reasons = [reason for reason in cells.reason[cells.status == worst] if reason]
    return {"status": str(worst), "reason": reasons[0] if reasons else ""}


def _counts(group: Group) -> dict[str, int]:
    return {"n_ok": len(group.ok), "n_total": int(group.cells.n_total.sum())}


def _measurements(group: Group) -> dict[str, float]:
    """Return the value of each column of each metric for one row. Metrics of images are NaN if all images are lost."""
    row: dict[str, float] = {}
    for metric in metrics.METRICS:
        undefined = metric.level is Level.IMAGE and group.ok.empty
        values = [np.nan] * len(metric.columns) if undefined else metric.summarise(group)
        row |= dict(zip(metric.columns, values, strict=True))
    return row


def _with_gain(samples: pd.DataFrame, floor: pd.DataFrame | None) -> pd.DataFrame:
    """Return the samples with the column `gain`: PSNR minus the PSNR of the floor for the same image, NaN without a floor."""
    if samples.empty or floor is None:
        return samples.assign(gain=np.nan)
    floor_psnr = by_image(floor).psnr.rename("floor_psnr")
    return samples.assign(gain=samples.psnr - samples.join(floor_psnr, on=IMAGE_KEY, validate="one_to_one").floor_psnr)


def better_floors(results: Results) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Return the rows of the better floor (by median PSNR) for each scene and defense.

    There are no rows if a floor is incomplete. A floor is complete if it has every image that any attack has there, or if it
    was skipped. For example, `prior_sample` is skipped if no prior is granted.
    """
    cells = results.cells[results.cells.control & (results.cells.attack != ORACLE)]
    planned = set(cells.attack) if results.floors is None else results.floors
    better = {}
    for key, group in cells.groupby([*SCENE_COLUMNS, "defense"], sort=False):
        rows = select(results.samples, dict(zip([*SCENE_COLUMNS, "defense"], key, strict=True)))
        if rows.empty:
            continue
        images = len(rows[IMAGE_KEY].drop_duplicates())
        floors = rows[rows.control & (rows.attack != ORACLE) & (rows.status == "ok")]
        complete = {name for name, floor_rows in floors.groupby("attack") if len(floor_rows) == images}
        if complete and planned <= complete | set(group.attack[group.status == Status.SKIPPED]):
            better[key] = floors[floors.attack == floors.groupby("attack").psnr.median().idxmax()]
    return better
