"""Compare two attacks of one run, paired by image."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmark.evaluation.statistics import median_interval
from benchmark.report.results import SCENE_COLUMNS, Results, by_image, select


def paired_difference(results: Results, first: str, second: str) -> pd.DataFrame:
    """Return the paired difference in PSNR of two attacks: one row per scene and defense for which both attacks have images.

    Columns: the columns of the scene, `defense`, `n` (images that both attacks reconstructed), `n_total` (all images of the
    first attack), `difference` (median over images of first minus second, in dB), `ci_low` and `ci_high` (its 95% interval).
    """
    rows = []
    for key, group in results.samples.groupby([*SCENE_COLUMNS, "defense"], sort=False) if len(results.samples) else ():
        a, b = (by_image(group[group.attack == attack]) for attack in (first, second))
        both = a.merge(b, left_index=True, right_index=True, suffixes=("", "_other"), validate="one_to_one").dropna()
        if both.empty:
            continue
        difference = (both.psnr - both.psnr_other).tolist()
        low, high = median_interval(difference, both.source.tolist())
        names = dict(zip([*SCENE_COLUMNS, "defense"], key, strict=True))
        total = int(select(results.cells, {**names, "attack": first}).n_total.sum())
        rows.append(
            {**names, "n": len(both), "n_total": total, "difference": np.median(difference), "ci_low": low, "ci_high": high}
        )
    return pd.DataFrame(rows, columns=[*SCENE_COLUMNS, "defense", "n", "n_total", "difference", "ci_low", "ci_high"])
