"""Finished run directories, damaged at random, then reported, compared and continued."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import nasty
from tests.fuzz.harness import ROOT, Case, Outcome
from tests.scenes import quick_figures

FINISHED = "finished"
GRID = ("run", "--grid", "../finished.yaml", "--display", "none", "--out")
KEY = ("dataset", "scenario", "model", "defense", "attack")
USERS = (
    "figures/fig1.pdf", "figures/mine.png", "figures/notes.txt", "figures/.hidden", "figures/sub/a.png", "notes.md",
    "paper.csv", ".mine", "cells/README.md", "cells/mine/a.txt", "leaderboard.xlsx", "figures/heatmap.pdf",
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1.5, 10**30, "", "x", "nan", "ok", "=1+1", [], ["x"], {}, {"x": []}, "x" * 3000, "\ud800", "a\nb",
    float("nan"), float("inf"),
)  # fmt: skip
TIMES = frozenset({"seconds_per_victim"})
"""Columns that differ when a cell runs again."""


def before(root: Path) -> None:
    """Make the run that every case copies: a part of the smoke grid with one evaluation and one victim."""
    if (root / FINISHED / "leaderboard.csv").exists():
        return
    from benchmark.cli import main

    grid = yaml.safe_load((ROOT / "benchmark/grids/smoke.yaml").read_text())
    (root / "finished.yaml").write_text(yaml.safe_dump({**grid, "attacks": ["dlg"], "victims": 1, "evaluations": 1}))
    with quick_figures(), contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(root):
        code = main(["run", "--grid", "finished.yaml", "--display", "none", "--out", FINISHED])
    assert code == 0, "the run that cases copy has failed"


def case(seed: int) -> Case:
    """Return a report of a damaged run. Some cases measure again, compare two attacks, or continue the run."""
    draw = Random(seed)
    commands: list[list[str]] = [["report", "RUN", *draw.choice(([], [], ["--measure", "ssim"]))]]
    if draw.random() < 0.3:
        commands.append(["compare", "RUN", "dlg", "constant_image"])
    if draw.random() < 0.2:
        commands.insert(draw.choice((0, len(commands))), [*GRID, "RUN"])
    drawn = draw.random() < 0.05
    users: dict[str, bytes] = {}
    tables: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}

    def prepare(place: Path) -> None:
        shutil.copytree(place.parent / FINISHED, place / "RUN")
        tables["whole"] = _table(place / "RUN")
        (place / "theirs.txt").write_bytes(b"a file of the user's")
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            _damage(place, draw)
        for name in draw.sample(USERS, draw.choice((0, 0, 1, 3))):
            with contextlib.suppress(OSError):  # a damage replaced its folder
                (place / "RUN" / name).parent.mkdir(parents=True, exist_ok=True)
                (place / "RUN" / name).write_bytes(b"mine")
                users[name] = b"mine"

    def check(place: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
        for name, content in users.items():
            if not (place / "RUN" / name).is_file() or (place / "RUN" / name).read_bytes() != content:
                yield "a user's file in the run directory was touched", name
        yield from _wrong(tables["whole"], place / "RUN", outcomes)

    return Case(commands, prepare, check, own=("RUN",), around=contextlib.nullcontext if drawn else quick_figures)


def _wrong(whole: Mapping[Any, Any], run: Path, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the written tables and with a continued run."""
    again = [outcome for outcome in outcomes if outcome.words[0] == "run"]
    if any(outcome.code in (0, 1) for outcome in outcomes if outcome.words[0] != "compare"):
        yield from _different(whole, _table(run), again=bool(again))
    for outcome in again:
        if outcome.code not in (0, 2):
            yield "a damaged run does not go on", f"exit code {outcome.code}: {outcome.out[-300:]}"


def _damage(place: Path, draw: Random) -> None:
    run = place / "RUN"
    order = {
        name: number for number, name in enumerate(json.loads((place.parent / FINISHED / "run.json").read_text())["cells"])
    }
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    files.sort(key=lambda path: (order.get(path.parent.name, -1), path.name))  # identities change with the code
    cells = [path for path in files if path.parent.name in order]
    path = draw.choice(cells) if cells and draw.random() < 0.6 else draw.choice([run / "run.json", *files])
    roll = draw.random()
    with contextlib.suppress(OSError):  # an earlier damage left no such file
        if path.suffix == ".json" and roll < 0.6:
            _json(path, draw)
        elif roll < 0.65:
            path.write_bytes(nasty.damaged(path.read_bytes(), draw))
        elif roll < 0.85:
            _replace(path, place, draw)
        else:
            _beside(run, place, draw)


def _json(path: Path, draw: Random) -> None:
    """Remove, replace or add a field at any depth."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return
    holders = list(_holders(content))
    if not holders:
        return
    holder = draw.choice(holders) if draw.random() < 0.6 else holders[0]
    key = draw.choice(sorted(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    roll = draw.random()
    if roll < 0.3:
        del holder[key]
    elif roll < 0.8:
        holder[key] = draw.choice(VALUES)
    elif isinstance(holder, dict):
        holder[draw.choice(("x", "", "status ", "schema2"))] = draw.choice(VALUES)
    else:
        content = draw.choice(([], None, 5, "x", {}, [content]))
    path.write_text(draw.choice((json.dumps(content), json.dumps(content), json.dumps(content)[:-1] + ', "x": ' + "[" * 10**5)))


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _holders(item)


def _replace(path: Path, place: Path, draw: Random) -> None:
    """Put a folder, a link or nothing in the place of a file, or of its cell."""
    if path.parent.parent.name == "cells" and draw.random() < 0.3:
        path = path.parent
        shutil.rmtree(path)
    else:
        path.unlink()
    kind = draw.choice(("nothing", "folder", "full folder", "dangling", "loop", "theirs", "empty", "pipe"))
    if kind in ("folder", "full folder"):
        path.mkdir()
        if kind == "full folder":
            (path / "x").write_bytes(b"x")
    elif kind in ("dangling", "loop", "theirs"):
        path.symlink_to({"dangling": place / "nowhere", "loop": path, "theirs": place / "theirs.txt"}[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.write_bytes(b"")


def _beside(run: Path, place: Path, draw: Random) -> None:
    """Put something where the next command wants to write."""
    identity = draw.choice(json.loads((place.parent / FINISHED / "run.json").read_text())["cells"])
    target = run / draw.choice(
        (f"cells/.writing-{identity}", f"cells/{identity[::-1]}", ".run.json", ".lock", ".leaderboard.csv", "figures.tmp")
    )
    target.unlink(missing_ok=True)
    draw.choice(
        (
            lambda: target.write_bytes(b"x"),
            target.mkdir,
            lambda: target.symlink_to(place / "theirs.txt"),
            lambda: target.symlink_to("nowhere"),
        )
    )()


def _table(run: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with (run / "leaderboard.csv").open(newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def _different(whole: Mapping[Any, Any], table: Mapping[Any, Any], again: bool) -> Iterator[tuple[str, str]]:
    """Yield which numbers of complete rows differ; a gain may be missing where its floor is."""
    complete = {key for key, row in table.items() if row["status"] == "ok" and row["n_ok"] == row["n_total"]}
    lost = [key for key in whole if key not in table or table[key]["n_ok"] != whole[key]["n_ok"]]
    for key in complete:
        if key[-1].startswith("strongest:") and lost:  # chosen among those that are left
            continue
        if key not in whole:
            yield "the leaderboard has a row that never was", " · ".join(key)[:200]
            continue
        names = [name for name, value in table[key].items() if value != whole[key][name] and not (again and name in TIMES)]
        if names := [name for name in names if table[key][name] or not name.startswith("psnr_gain")]:
            yield "a complete row of the leaderboard has other numbers", f"{key[-1]} vs {key[-2]}: {', '.join(names)}"
