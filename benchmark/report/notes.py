"""Write the sentences that accompany every table: what its numbers depend on, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmark.evaluation.metrics import measures
from benchmark.evaluation.statistics import CONFIDENCE_LEVEL, reachable_level
from benchmark.experiment.store import Cell, Record


def notes_on_damage(damage: Sequence[tuple[str, str]]) -> list[str]:
    """Return one sentence per reason, given (file, reason) for each file that cannot be read."""
    kinds: dict[str, list[str]] = {}
    for name, reason in damage:
        kinds.setdefault(reason, []).append(name)
    sentences = []
    for reason, names in kinds.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        counts, it = ("count", "them") if others else ("counts", "it")
        sentences.append(
            f"{names[0]}{others} cannot be read ({reason}) and {counts} as missing; the same run command makes {it} again."
        )
    return sentences


def notes_on_samples(samples: pd.DataFrame, group: Sequence[str]) -> list[str]:
    """Return a warning if a group has too few photographs for an interval of a median to reach its nominal coverage."""
    if samples.empty:
        return []
    fewest = int(samples.groupby(list(group), sort=False).source.nunique().min())
    if reachable_level(fewest) >= CONFIDENCE_LEVEL:
        return []
    reached = f"{reachable_level(fewest):.1%}"
    return [f"With {fewest} photographs an interval of a median covers at most {reached}, not {CONFIDENCE_LEVEL:.0%}."]


def notes_on_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the hyper-parameters that the grid or the command set, i.e. not the defaults of the plugins."""
    if not settings:
        return []
    return [f"Set by the grid or the command: {', '.join(f'{key}={settings[key]}' for key in sorted(settings))}."]


def notes_on_measurements(cells: Sequence[Cell]) -> list[str]:
    """Return which metrics lack values for images that did not diverge, and why."""
    notes = []
    for name, measure in measures().items():
        lacking = [cell.record for cell in cells if cell.samples[name][cell.samples.status == "ok"].isna().any()]
        hint = f"{len(lacking)} of {len(cells)} cells lack it; to measure it: report RUN --measure {name}"
        reasons = {record.unmeasured.get(name, hint) for record in lacking}
        notes += [f"No {measure.title}: {reason}." for reason in sorted(reasons)]
    return notes


def notes_on_records(records: Sequence[Record]) -> list[str]:
    """Return the notes of all records, each sentence once."""
    notes: list[str] = []
    for record in records:
        notes += [remark for part in ("dataset", "model") for remark in record.config[part].get("remarks") or []]
        notes += [_privacy(record)] if record.privacy else []
        notes += _practice(record)
    return list(dict.fromkeys([*notes, *map(_made_with, records)]))


def notes_on_floors(table: pd.DataFrame, success_db: float, scene: Sequence[str], ceiling: str) -> list[str]:
    """Return the scenes in which a floor itself reaches the success threshold, so success there shows nothing about an attack.

    Args:
        table: the leaderboard.
        success_db: PSNR from which an image counts as recovered.
        scene: columns that identify one table.
        ceiling: name of the control that is not a floor.
    """
    floors = table[table.control.astype(bool) & (table.attack != ceiling) & (table.success_rate > 0)]
    shares = floors.groupby([*scene, "attack"], sort=False).success_rate.max()
    return [
        f"{name} itself reaches {success_db:g} dB for {_percent(share)} of the images of {' · '.join(map(str, place))}: "
        "success says nothing there."
        for (*place, name), share in shares.items()
    ]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def _privacy(record: Record) -> str:
    assert record.privacy is not None
    p, steps = record.privacy, record.config["scenario"]["local_steps"]
    with_steps = f" of {steps} local steps" if steps > 1 else ""
    per_round, total = (f"{float(p[f'epsilon_{span}']):.3g}" for span in ("round", "total"))
    rdp = [p.get(f"epsilon_{span}_rdp") for span in ("round", "total")]
    rdp_texts = [f"{float(epsilon):.3g}" for epsilon in rdp if epsilon is not None]
    with_rdp = f" ({' and '.join(rdp_texts)} by RDP)" if rdp_texts else ""
    return (
        f"{record.config['defense']['name']}: epsilon {per_round} a round and {total} in {p['rounds']} rounds{with_steps}, "
        f"by the {p['accountant']} accountant{with_rdp}, for delta {p['delta']:g}, to {p['adjacency']}, sample rate "
        f"{p['sample_rate']:g} (sampling: {p.get('sampling') or 'not recorded'}); no amplification from sampling clients."
    )


def _practice(record: Record) -> list[str]:
    """Return how the origin of the model and the practice of the client affect the numbers."""
    notes, model, scenario = [], record.config["model"], record.config["scenario"]
    if model["state"] == "checkpoint":
        notes.append(f"{model['name']}: its training data are not known, so it may have seen the victims.")
    if scenario["local_steps"] > 1 and scenario["order"] == "unknown":
        notes.append(
            "E above 1 in an unknown order: where timestep or noise is granted, the engine reads all images as one batch "
            "at the global weights, which is wrong by the order of lr."
        )
    if scenario["sampling"] == "poisson":
        notes.append(
            "Poisson batches: empty ones are drawn again, since they hold nothing to rebuild, and the attack is "
            "granted the batch's size; epsilon is that of the mechanism without either."
        )
    return notes


def _made_with(record: Record) -> str:
    """Return a sentence with the versions and the machine."""
    made = record.environment
    commit = str(made.get("git_commit", "unknown"))[:12] + (" with local changes" if made.get("git_dirty") else "")
    machine = made.get("gpu") or f"{made.get('cpu')} CPU, threads: {made.get('threads')}"
    return f"Made with GIDBench {made.get('gidbench')} ({commit}), torch {made.get('torch')}, {machine}."
