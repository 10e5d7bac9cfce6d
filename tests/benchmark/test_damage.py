"""Tests of run directories that a disk, a kill or a person has changed."""

import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from benchmark.base.errors import UserError
from benchmark.base.files import digest
from benchmark.cli import main
from benchmark.evaluation import statistics
from benchmark.experiment.records import checksum
from benchmark.experiment.store import SCHEMA_VERSION, DamagedCell, Store
from benchmark.report import figures
from benchmark.report.build import build_report
from benchmark.report.results import read_results
from tests.benchmark.stores import ABC, PRIVACY, add, identity_of, image_sample, record


@pytest.fixture
def undrawn(monkeypatch):
    """No figures and short bootstraps, since whole ones take seconds."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 20)
    monkeypatch.setattr(figures, "write_figures", lambda results, table, best, directory: [])


@pytest.fixture
def run(tmp_path, undrawn):
    store = Store(tmp_path / "run")
    with store.writing():
        cells = [add(store, "constant_image", [10.0] * 4), add(store, "random_guess", [8.0] * 4)]
        cells += [add(store, "strong", [40.0, 50.0, 60.0, None], privacy=PRIVACY)]
        store.save_plan("A title", 30.0, {}, cells)
    return store


STRONG = identity_of("strong-none-0")


def change(path, place, value):
    """Set a value inside a JSON file."""
    values = json.loads(path.read_text())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    if "checksum" in values:
        values["checksum"] = checksum(values)
    path.write_text(json.dumps(values))


def forge(cell, table):
    """Replace a cell's samples, with a checksum that is right."""
    pyarrow.parquet.write_table(table, cell / "samples.parquet")
    change(cell / "record.json", ["samples_digest"], digest((cell / "samples.parquet").read_bytes()))


def test_a_changed_byte_makes_the_cell_missing_and_the_report_names_the_file(run, capsys):  # R2
    path = run.cells / STRONG / "samples.parquet"
    content = bytearray(path.read_bytes())
    content[4] ^= 0x55
    path.write_bytes(content)
    assert run.record(STRONG) is None
    assert main(["report", str(run.path)]) == 0
    text = (run.path / "leaderboard.md").read_text()
    assert f"cells/{STRONG}/samples.parquet cannot be read (its checksum differs) and counts as missing" in text
    assert "Unfinished: 2 of 3" in text
    assert main(["compare", str(run.path), "constant_image", "random_guess"]) == 0
    assert "its checksum differs" in capsys.readouterr().err
    with run.writing():
        add(run, "strong", [40.0] * 4)
    assert run.record(STRONG) is not None and not read_results(run).damage


RECORD_DAMAGE = [
    (["config"], None),
    (["config"], []),
    (["config", "scenario"], "x"),
    (["config", "scenario", "batch_size"], 0),
    (["config", "scenario", "clients"], 10**9 + 1),
    (["config", "scenario", "timesteps"], 200),
    (["config", "dataset", "name"], None),
    (["config", "dataset", "remarks"], "text"),
    (["config", "trial"], True),
    (["identity"], identity_of("other")),
    (["identity"], "../abc"),
    (["status"], "splendid"),
    (["status"], []),
    (["n_total"], 0),
    (["n_total"], 2),
    (["seconds"], float("nan")),
    (["budget"], "many"),
    (["privacy"], {}),
    (["privacy", "delta"], "small"),
    (["privacy", "epsilon_total"], "much"),
    (["environment"], None),
    (["samples_digest"], None),
    (["schema"], SCHEMA_VERSION - 1),
    (["schema"], "x"),
    (["more"], 1),
]


@pytest.mark.parametrize(("place", "value"), RECORD_DAMAGE)  # T3
def test_a_record_of_another_form_is_a_missing_one(run, place, value):
    change(run.cells / STRONG / "record.json", place, value)
    assert run.record(STRONG) is None
    with pytest.raises(DamagedCell):
        run.read(STRONG)
    results = read_results(run)
    assert len(results.cells) == 2 and STRONG in results.damage[0]


PLAN_DAMAGE = [
    *[([], value) for value in (None, [], {}, "x", 7)],
    *[(["cells"], value) for value in (None, {}, "x", ["abc"], ["../../etc"], [7])],
    *[(["title"], value) for value in (None, [], 7)],
    *[(["settings"], value) for value in (None, [], "x")],
    *[(["success_db"], value) for value in (None, "30", float("nan"), float("inf"))],
]


@pytest.mark.parametrize(("place", "value"), PLAN_DAMAGE)  # T3
def test_a_plan_of_another_form_is_no_run_directory(run, place, value):
    path = run.path / "run.json"
    change(path, place, value) if place else path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="no run directory"):
        run.plan()
    assert main(["report", str(run.path)]) == main(["compare", str(run.path), "a", "b"]) == 2


@pytest.mark.parametrize("name", ["run.json", "cells", "figures", f"cells/{STRONG}", f"cells/{STRONG}/record.json"])  # T3
@pytest.mark.parametrize("kind", ["directory", "file", "dangling link", "link to a folder"])
def test_the_wrong_thing_in_the_place_of_a_file_is_a_sentence(run, capsys, name, kind):
    path = run.path / name
    if path.exists():
        path.rename(run.path / "before")
    makers = {"directory": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("nowhere")}
    makers.get(kind, lambda: path.symlink_to("/usr"))()
    assert main(["report", str(run.path)]) in (0, 2)
    assert main(["compare", str(run.path), "strong", "random_guess"]) in (0, 2)
    assert all(line.startswith(("error: ", "note: ")) for line in capsys.readouterr().err.splitlines())


def test_columns_values_and_sizes_of_samples_are_checked(run):  # R2
    cell = run.cells / STRONG
    whole = pyarrow.parquet.read_table(cell / "samples.parquet", memory_map=False)

    def column(name, values):
        at = whole.schema.get_field_index(name)
        return whole.set_column(at, whole.schema.field(name), pyarrow.array(values, whole.schema.field(name).type))

    for readable in (whole, whole.drop_columns(["predicted_psnr", "accepted"])):  # files of version 0.2.0 lack both
        forge(cell, readable)
        assert run.record(STRONG) is not None
    damaged = [
        whole.drop_columns(["psnr"]),
        whole.slice(0, 0),
        pyarrow.concat_tables([whole, whole]),
        column("image", [0, 1, 2, 3]).drop_columns(["loss"]),
        column("victim", [0, 0, 1, 2]),
        column("shape", [[8, 8, 3]] * 3 + [[8, 8, 4]]),
        column("shape", [[8, 8, 3]] * 3 + [[8, 8, None]]),
        column("shape", [[8, 8, 3]] * 3 + [None]),
        column("original", [b""] * 4),
        column("psnr", [1e308, 50.0, 60.0, None]),
        column("psnr", [None, 50.0, 60.0, None]),
        column("status", ["ok", "ok", "fine", "diverged"]),
        column("source", ["a", "b", "c", None]),
    ]
    for table in damaged:
        forge(cell, table)
        assert run.record(STRONG) is None
        assert len(read_results(run).cells) == 2


def test_two_records_of_one_place_and_an_identity_twice_count_once(run):  # T3
    copy = identity_of("copy")
    with run.writing():
        run.save(record(copy, config=run.record(STRONG).config, n_total=4), [image_sample(i) for i in range(4)])
        run.save_plan("A title", 30.0, {}, [*run.plan()["cells"], STRONG, copy])
    results = read_results(run)
    assert results.planned == 4 and len(results.cells) == 3
    assert copy in results.damage[0] and STRONG in results.damage[0]
    assert main(["report", str(run.path)]) == main(["compare", str(run.path), "strong", "random_guess"]) == 0


def test_many_damaged_cells_are_one_sentence_a_kind(run):
    for identity in run.plan()["cells"]:
        (run.cells / identity / "samples.parquet").write_bytes(b"PAR1")
    (sentence,) = read_results(run).damage
    assert "and 2 more cannot be read" in sentence
    with pytest.raises(UserError, match="no finished cell yet; cells/.* and 2 more cannot be read"):
        build_report(run)


@pytest.mark.parametrize("error", [MemoryError("bad_alloc"), pyarrow.lib.ArrowMemoryError("malloc of size 64 failed")])  # R4
def test_scarce_memory_is_no_damage(run, monkeypatch, error):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", fail)
    with pytest.raises(MemoryError):
        run.record(STRONG)
    with pytest.raises(UserError, match="memory does not suffice"):
        build_report(run)


def test_whatever_text_and_integer_an_attack_reports_can_be_saved(tmp_path, undrawn):  # R6
    store = Store(tmp_path)
    with store.writing():
        strange = image_sample(source="\ud800", reason="a\ud800", evaluations=10**30, timestep_error=2**63)
        config = record().config
        config["dataset"]["name"] = "folder:\udcff"
        store.save(record(reason="\ud800", config=config), [strange])
        store.save_plan("\ud800", 30.0, {"attack.x.y": "\udcff"}, [ABC])
    assert store.record(ABC).reason == "?" and store.samples(ABC).source[0] == "?"
    assert main(["report", str(tmp_path)]) == 0


def test_pictures_come_back_to_the_bit(run):
    assert np.array_equal(run.samples(STRONG).original[2], image_sample(2).original)


def test_a_run_directory_that_cannot_be_a_path_is_one_sentence(capsys):  # T4
    for verb in (["report", "~nosuchuser/run"], ["compare", "x" * 300, "a", "b"]):
        assert main(verb) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_record_with_changed_text_is_refused(run):  # R2
    path = run.cells / STRONG / "record.json"
    path.write_text(path.read_text().replace('"tiny"', '"huge"'))
    with pytest.raises(DamagedCell, match="its checksum differs"):
        run.read(STRONG)


def test_a_file_that_claims_to_be_huge_is_not_read(run):  # R2
    os.truncate(run.cells / STRONG / "samples.parquet", 2**42)
    assert run.record(STRONG) is None
