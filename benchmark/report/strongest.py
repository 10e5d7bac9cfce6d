"""Find the strongest attack under each defense. The defense should be judged by this row.

The strongest attack is the one with the highest median gain over the floor. Each resample of the bootstrap chooses it again. An
interval for a fixed winner would ignore that it was chosen because it won.

An image that an attack lost counts as the floor, since everybody can return the floor. An attack that lost all images is not
chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmark.evaluation import metrics
from benchmark.evaluation.statistics import best_intervals, rate_interval
from benchmark.experiment.grid import ORACLE
from benchmark.report.leaderboard import better_floors
from benchmark.report.results import IMAGE_KEY, SCENE_COLUMNS, Results, by_image, select

PREFIX = "strongest:"
"""Prefix of the name of the winning attack."""


def strongest(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each data set, scenario, model and defense: the attack with the largest median gain, `strongest:NAME`.

    For PSNR, gain and success, an image without a valid reconstruction counts as the floor's image. The intervals of PSNR and
    gain include the choice of the attack.
    Other metrics are NaN, except metrics of the defense. There is no row if no attack has an image, or if a floor is missing.
    """
    floors = better_floors(results)
    rows = [
        row
        for key, group in table.groupby([*SCENE_COLUMNS, "defense"], sort=False)
        if key in floors
        and (row := _winner(results, dict(zip([*SCENE_COLUMNS, "defense"], key, strict=True)), group, floors[key]))
    ]
    return pd.DataFrame(rows, columns=table.columns)


def _winner(results: Results, names: dict[str, Any], rows: pd.DataFrame, floor: pd.DataFrame) -> dict[str, Any] | None:
    samples = select(results.samples, names)
    samples = samples[~samples.control.astype(bool) & (samples.attack != ORACLE)]
    attacks = list(dict.fromkeys(samples.attack[samples.status == "ok"]))
    if not attacks:
        return None
    floor_images = by_image(floor)
    psnr = np.stack([_psnr_or_floor(samples[samples.attack == attack], floor_images) for attack in attacks])
    gain = psnr - floor_images.psnr.to_numpy(dtype=float)
    best = int(np.median(gain, axis=1).argmax())
    gain_interval, psnr_interval = best_intervals(gain, [gain, psnr], floor_images.source.tolist())
    winner: dict[str, Any] = rows[rows.attack == attacks[best]].iloc[0].to_dict()
    success_rate = float((psnr[best] >= results.success_db).mean())
    success_interval = rate_interval(success_rate, floor_images.source.nunique())
    return {
        **winner,
        **{column: np.nan for metric in metrics.METRICS if not metric.in_strongest for column in metric.columns},
        "success_rate": success_rate,
        "success_ci_low": success_interval[0],
        "success_ci_high": success_interval[1],
        "psnr_mean": float(psnr[best].mean()),
        "expected": "",
        "expected_reason": "",
        "attack": f"{PREFIX}{attacks[best]}",
        "psnr_median": float(np.median(psnr[best])),
        "psnr_ci_low": psnr_interval[0],
        "psnr_ci_high": psnr_interval[1],
        "psnr_gain": float(np.median(gain[best])),
        "psnr_gain_ci_low": gain_interval[0],
        "psnr_gain_ci_high": gain_interval[1],
    }


def _psnr_or_floor(samples: pd.DataFrame, floor_images: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the PSNR of an attack for every image of the floor. If the attack lost an image, use the PSNR of the floor."""
    psnr = samples[samples.status == "ok"].set_index(IMAGE_KEY).psnr.reindex(floor_images.index)
    return np.asarray(psnr.fillna(floor_images.psnr), dtype=float)
