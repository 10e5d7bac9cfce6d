"""Tests that a metric takes one entry in `METRICS`, and that `report --measure` applies it to a finished run."""

import contextlib
import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.cli import main
from benchmark.evaluation import metrics, statistics, summaries
from benchmark.evaluation.judge import judge
from benchmark.evaluation.metric import Direction, Level, Measure, Metric, TableColumn
from benchmark.experiment import store as store_module
from benchmark.experiment.frames import FIXED_COLUMNS
from benchmark.experiment.store import Store
from benchmark.report import figures
from benchmark.report.results import read_results
from benchmark.types import Reconstruction, Victim
from tests.benchmark.stores import config, identity_of, record

WORST = Metric(
    name="worst",
    level=Level.IMAGE,
    better=Direction.LOWER,
    columns=("worst_mean",),
    summarise=summaries.mean("worst"),
    table_columns=(TableColumn("worst pixel", "worst_mean", ".2f"),),
    measure=Measure("worst pixel", lambda a, b: float((a - b).abs().max()) / 2, bounds=(0.0, 1.0)),
)
ATTACKS = {"constant_image": 1.0, "strong": 0.1}
"""How far each attack's images are from the truth."""


def worst(frame):
    """The values of `WORST`, from the pictures and by another way."""
    pairs = zip(frame.original, frame.reconstruction, strict=True)
    return [np.float32(np.ptp(np.stack([a, b]), axis=0).max()) / 2 for a, b in pairs]


def finished(path):
    """A run whose images were judged: one of `strong`'s diverged."""
    store = Store(path)
    with store.writing():
        for attack, error in ATTACKS.items():
            draw = stream(0, "images")
            victims = [
                Victim(torch.rand(1, 3, 8, 8, generator=draw) * 2 - 1, torch.tensor([200]), torch.zeros(1, 3, 8, 8), (f"s{i}",))
                for i in range(4)
            ]
            rebuilt = [Reconstruction(v.images + error * torch.randn(v.images.shape, generator=draw), 1) for v in victims]
            if attack == "strong":
                rebuilt[3] = Reconstruction(torch.full_like(victims[3].images, torch.nan), 1)
            cell = record(
                identity_of(attack), config=config(attack), n_total=4, control=attack != "strong", lpips_missing="none"
            )
            store.save(cell, judge(victims, rebuilt, 30))
        store.save_plan("A title", 30.0, {}, map(identity_of, ATTACKS))
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No figures, short bootstraps, and no weights of LPIPS."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 20)
    monkeypatch.setattr(figures, "write_figures", lambda results, table, best, directory: [])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no weights"))


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path / "run")


def add_metric(monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, WORST))


def files(run):
    """Every file of a run directory, with its content and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.path.rglob("*") if path.is_file()}


def samples(run, attack):
    return run.samples(identity_of(attack))


def test_the_entries_fit_together():
    names = [metric.name for metric in metrics.METRICS]
    columns = [column for metric in metrics.METRICS for column in metric.columns]
    assert len(set(names)) == len(names) and len(set(columns)) == len(columns)
    assert not set(metrics.measures()) & set(FIXED_COLUMNS)
    for metric in metrics.METRICS:
        assert metric.measure is None or metric.level is Level.IMAGE
        assert {name for shown in metric.table_columns for name in (shown.column, *(shown.interval or ()))} <= set(
            metric.columns
        )


def test_one_entry_reaches_samples_and_every_table(monkeypatch, tmp_path):
    add_metric(monkeypatch)
    run = finished(tmp_path / "run")
    assert main(["report", str(run.path)]) == 0
    strong = samples(run, "strong")
    assert strong.worst[:3].tolist() == worst(strong[:3]) and np.isnan(strong.worst[3])

    table = pd.read_csv(run.path / "leaderboard.csv").set_index("attack")
    assert list(table.columns[-4:]) == ["worst_mean", "expected", "expected_reason", "schema"]  # `schema` stays last
    assert table.worst_mean["strong"] == pytest.approx(np.mean(worst(strong[:3])))
    assert np.isnan(table.worst_mean["strongest:strong"]), "measured of the images of one attack"

    shown = f"{table.worst_mean['strong']:.2f}"
    markdown, latex = (run.path / "leaderboard.md").read_text(), (run.path / "leaderboard.tex").read_text()
    heading, strong_row = (
        next(line for line in markdown.splitlines() if line.startswith(start)) for start in ("| att", "| strong |")
    )
    assert dict(zip(heading.split(" | "), strong_row.split(" | "), strict=True))["worst pixel ↓"] == shown

    (alignment,) = set(re.findall(r"\\begin\{tabular\}\{(\w+)\}", latex))
    headings = next(line for line in latex.splitlines() if line.startswith("attack &")).removesuffix(r" \\").split(" & ")
    assert len(alignment) == len(headings)
    assert dict(zip(headings, alignment, strict=True))[r"worst pixel $\downarrow$"] == "r"
    assert any(line.endswith(rf"& {shown} \\") for line in latex.splitlines())


def test_a_finished_run_is_measured_by_a_new_metric_and_nothing_else_changes(monkeypatch, run, capsys):
    before = {attack: samples(run, attack) for attack in ATTACKS}
    theirs = [run.path / "notes.md", run.cells / identity_of("strong") / "mine.txt", run.cells / "mine" / "a.txt"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    add_metric(monkeypatch)
    note = "No worst pixel: 2 of 2 cells lack it; to measure it: report RUN --measure worst."
    assert note in read_results(run).notes
    assert main(["report", str(run.path), "--measure", "worst"]) == 0
    assert "Measured worst of 8 images" in capsys.readouterr().out
    assert note not in read_results(run).notes and not read_results(run).damage
    for attack in ATTACKS:
        after = samples(run, attack)
        ok = after.status == "ok"
        assert after.worst[ok].tolist() == worst(after[ok]) and after.worst[~ok].isna().all()
        pd.testing.assert_frame_equal(after.drop(columns="worst"), before[attack])
        assert run.record(identity_of(attack)) == record(
            identity_of(attack), config=config(attack), n_total=4, control=attack != "strong", lpips_missing="none"
        )
    assert pd.read_csv(run.path / "leaderboard.csv").worst_mean.notna().sum() == 2
    assert all(path.read_text() == "mine" for path in theirs)
    assert {path.name for path in (run.cells / identity_of("strong")).iterdir()} == {
        "record.json",
        "samples.parquet",
        "mine.txt",
    }


@pytest.mark.parametrize("name", ["psnr", "ssim", "mse"])
def test_measuring_again_gives_the_bits_of_the_judge(run, name):
    before = {attack: samples(run, attack) for attack in ATTACKS}
    assert main(["report", str(run.path), "--measure", name]) == 0
    for attack in ATTACKS:
        pd.testing.assert_frame_equal(samples(run, attack), before[attack], check_exact=True)


def test_a_missing_measurement_is_added_and_its_note_removed(monkeypatch, run):
    assert "No LPIPS: none." in read_results(run).notes
    lpips = next(metric for metric in metrics.METRICS if metric.name == "lpips")
    able = dataclasses.replace(lpips, measure=WORST.measure)
    monkeypatch.setattr(metrics, "METRICS", tuple(able if metric is lpips else metric for metric in metrics.METRICS))
    assert main(["report", str(run.path), "--measure", "lpips"]) == 0
    assert not [note for note in read_results(run).notes if "LPIPS" in note]
    assert pd.read_csv(run.path / "leaderboard.csv").lpips_mean.notna().sum() == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lpips", "error: LPIPS cannot be measured: torchvision's AlexNet weights"),
        ("lpisp", "error: unknown metric of images 'lpisp'; known are: psnr, ssim, lpips, mse"),
        ("seconds", "error: unknown metric of images 'seconds'; known are: psnr, ssim, lpips, mse"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_and_changes_nothing(run, capsys, name, sentence):
    before = files(run)
    assert main(["report", str(run.path), "--measure", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(sentence)
    assert files(run) == before


def test_a_place_that_is_no_run_stays_as_it_is(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--measure", "psnr"]) == 2
    assert "no run directory" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_cell_that_cannot_be_read_is_left_and_the_others_are_measured(monkeypatch, run):
    damaged = run.cells / identity_of("strong") / "samples.parquet"
    damaged.write_bytes(b"PAR1")
    add_metric(monkeypatch)
    assert main(["report", str(run.path), "--measure", "worst"]) == 0
    assert damaged.read_bytes() == b"PAR1"
    assert samples(run, "constant_image").worst.notna().all()


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("done", [False, True])
def test_a_kill_at_any_moment_leaves_the_old_cell_or_the_new_one(monkeypatch, run, step, done):
    """Before and after each file that `amend` writes; measuring again then finishes and clears what is left."""
    add_metric(monkeypatch)
    before = samples(run, "strong")
    write, count = store_module.replace, iter(range(100))

    def killed(path, content):
        now = next(count) == step
        if now and not done:
            path.with_name(f".writing-{'a' * 16}").write_bytes(content[:10])
            raise KeyboardInterrupt
        write(path, content)
        if now:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, run.writing(), contextlib.suppress(KeyboardInterrupt):
        patch.setattr(store_module, "replace", killed)
        run.amend(run.read(identity_of("strong")), "worst", [0.25, 0.5, 0.75, None])
    found = samples(run, "strong")
    pd.testing.assert_frame_equal(found.drop(columns="worst"), before.drop(columns="worst"))
    assert found.worst.isna().all() or found.worst[:3].tolist() == [0.25, 0.5, 0.75]
    assert found.worst.isna().all() == ((step, done) != (2, True))

    with run.writing():
        pass
    assert {path.name for path in (run.cells / identity_of("strong")).iterdir()} == {"record.json", "samples.parquet"}
    pd.testing.assert_frame_equal(samples(run, "strong"), found)

    assert main(["report", str(run.path), "--measure", "worst"]) == 0
    assert samples(run, "strong").worst[:3].tolist() == worst(before[:3])
    assert {path.name for path in (run.cells / identity_of("strong")).iterdir()} == {"record.json", "samples.parquet"}


def test_a_metric_that_is_gone_is_left_out(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        add_metric(patch)
        run = finished(tmp_path / "run")
    assert "worst" not in samples(run, "strong") and not read_results(run).damage
