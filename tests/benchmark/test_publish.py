"""Tests that a report replaces and deletes only what a report wrote."""

import json

import pytest

from benchmark.cli import main
from benchmark.evaluation import statistics
from benchmark.experiment.store import Store
from benchmark.report import figures, publish
from benchmark.report.build import build_report
from benchmark.report.publish import publishing
from tests.benchmark.stores import add


@pytest.fixture
def drawn(monkeypatch):
    """The names of figures that a report draws, a few bytes each."""
    names = ["heatmap.png", "heatmap.pdf"]

    def write(results, table, best, directory):
        for name in names:
            (directory / name).write_text(f"drawn {results.title}")

    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 20)
    monkeypatch.setattr(figures, "write_figures", write)
    return names


@pytest.fixture
def store(tmp_path, drawn):
    store = Store(tmp_path / "run")
    with store.writing():
        store.save_plan("A title", 30.0, {}, [add(store, "constant_image", [10.0] * 4)])
    return store


def contents(store):
    paths = [path for path in store.path.glob("**/*") if path.is_file() and "cells" not in path.parts]
    return {path.relative_to(store.path).as_posix(): path.read_text() for path in paths}


def test_pictures_that_no_report_wrote_are_never_deleted(store):  # R1
    (store.path / "figures").mkdir()
    for name in ("fig1.pdf", "photo.png"):
        (store.path / "figures" / name).write_text("mine")
    build_report(store)
    build_report(store)
    found = contents(store)
    assert found["figures/fig1.pdf"] == found["figures/photo.png"] == "mine"
    assert found["figures/heatmap.png"] == "drawn A title"


def test_figures_behind_a_link_are_refused_and_stay(store, tmp_path, capsys):  # R1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "fig1.pdf").write_text("mine")
    (store.path / "figures").symlink_to(tmp_path / "mine")
    assert main(["report", str(store.path)]) == 2
    assert "figures is a link" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["fig1.pdf"]


def test_an_outdated_figure_of_an_earlier_report_is_deleted(store, drawn):
    build_report(store)
    drawn[:] = ["other.png"]
    build_report(store)
    assert {name for name in contents(store) if name.startswith("figures/")} == {"figures/other.png"}


def test_a_figure_that_was_changed_since_stays(store, drawn):  # R1
    build_report(store)
    (store.path / "figures" / "heatmap.png").write_text("annotated by hand")
    drawn[:] = ["other.png"]
    build_report(store)
    assert contents(store)["figures/heatmap.png"] == "annotated by hand"


@pytest.mark.parametrize("name", ["leaderboard.csv", "leaderboard.md", "figures/heatmap.png"])  # R1
def test_a_foreign_file_with_a_needed_name_is_kept_as_a_backup(store, capsys, name):
    (store.path / "figures").mkdir()
    for content in ("mine", "mine again"):
        (store.path / name).write_text(content)
        build_report(store)
        assert capsys.readouterr().err.count("are kept as") == 1
    found = contents(store)
    assert (found[f"{name}~"], found[f"{name}~2"]) == ("mine", "mine again")
    assert "mine" not in found[name]
    build_report(store)
    assert capsys.readouterr().err == "" and contents(store) == found


@pytest.mark.parametrize("name", ["leaderboard.csv", "leaderboard.tex", "figures/heatmap.pdf", ".report.json"])  # R8
def test_no_part_of_a_report_is_written_through_a_link(store, tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    (store.path / "figures").mkdir()
    (store.path / name).symlink_to(tmp_path / "mine")
    build_report(store)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (store.path / name).is_symlink()


@pytest.mark.parametrize("moment", range(9))  # R10
def test_a_report_that_is_killed_is_mended_by_the_next(store, monkeypatch, capsys, moment):
    build_report(store)
    before = contents(store)
    store.save_plan("Another title", 30.0, {}, store.plan()["cells"])
    steps = iter(range(100))

    def dying(function):
        def step(*arguments):
            if next(steps) == moment:
                raise KeyboardInterrupt
            return function(*arguments)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(publish, "_place", dying(publish._place))
        patched.setattr(publish, "_write_manifest", dying(publish._write_manifest))
        patched.setattr(publish, "remove", lambda path: None)  # nobody clears up after a kill
        if moment < 7:
            with pytest.raises(KeyboardInterrupt):
                build_report(store)
        else:
            build_report(store)
    for name, text in contents(store).items():
        assert name.startswith((".", "run.json")) or text == before[name] or "Another title" in text
    build_report(store)
    found = contents(store)
    assert found.keys() == before.keys() and "kept" not in capsys.readouterr().err
    assert found["figures/heatmap.png"] == "drawn Another title"


def test_a_report_that_fails_leaves_the_earlier_one(store, drawn, monkeypatch):  # R10
    build_report(store)
    before = contents(store)
    monkeypatch.setattr(
        figures, "write_figures", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert main(["report", str(store.path)]) == 2
    assert contents(store) == before


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{",
        '{"../mine.png": ["DIGEST"]}',
        '{"figures/../../mine.png": ["DIGEST"]}',
        '{"/mine.png": ["DIGEST"], "run.json": ["DIGEST"], "figures/deep/mine.png": ["DIGEST"]}',
        '{"figures/mine.png": "DIGEST"}',
        '{"figures/mine.png": [7]}',
        '{"figures/link.png": ["DIGEST"]}',
    ],
)  # R1
def test_a_manifest_cannot_make_a_report_delete_other_files(store, tmp_path, manifest):
    from benchmark.base.files import digest

    (store.path / "figures" / "deep").mkdir(parents=True)
    mine = [tmp_path / "mine.png", store.path / "figures" / "mine.png", store.path / "figures" / "deep" / "mine.png"]
    for path in mine:
        path.write_text("mine")
    (store.path / "figures" / "link.png").symlink_to(tmp_path / "mine.png")
    (store.path / ".report.json").write_text(manifest.replace("DIGEST", digest(b"mine")))
    build_report(store)
    assert all(path.read_text() == "mine" for path in mine)
    assert (store.path / "figures" / "link.png").is_symlink()


def test_leftovers_of_a_killed_report_are_removed_and_user_files_stay(store):
    (store.path / ".report-0123456789abcdef" / "figures").mkdir(parents=True)
    (store.path / ".report-mine").mkdir()
    with publishing(store.path):
        pass
    assert [path.name for path in store.path.glob(".report-*")] == [".report-mine"]


def test_the_manifest_names_what_was_written(store):
    build_report(store)
    written = json.loads((store.path / ".report.json").read_text())
    tables = {"leaderboard.csv", "leaderboard.md", "leaderboard.tex"}
    assert set(written) == {*tables, "figures/heatmap.png", "figures/heatmap.pdf"}
