"""Tests of writing beside links and other people's files."""

import errno
import fcntl
import os

import pytest

from benchmark.base.errors import UserError
from benchmark.base.files import replace, set_aside
from benchmark.experiment.store import Status, Store
from tests.benchmark.stores import ABC, identity_of, image_sample, record


@pytest.fixture
def mine(tmp_path):
    """A file of the user's outside the run directory."""
    path = tmp_path / "mine"
    path.write_text("mine")
    return path


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "run")
    with store.writing():
        store.save(record(), [image_sample()])
        store.save_plan("A title", 30.0, {}, [ABC])
    return store


@pytest.mark.parametrize("name", ["run.json", ".run.json"])  # R8
def test_a_plan_is_never_written_through_a_link(store, mine, name):
    (store.path / name).unlink(missing_ok=True)
    (store.path / name).symlink_to(mine)
    store.save_plan("Another title", 30.0, {}, [ABC])
    assert mine.read_text() == "mine"
    assert store.plan()["title"] == "Another title"


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(store, mine):  # R8
    (store.path / ".lock").unlink()
    (store.path / ".lock").symlink_to(mine)
    with pytest.raises(UserError, match="cannot write to"), store.writing():
        pass
    assert mine.read_text() == "mine"


def test_taking_the_lock_empties_no_file(store):  # R8
    (store.path / ".lock").write_text("mine")
    with store.writing():
        pass
    assert (store.path / ".lock").read_text() == "mine"


@pytest.mark.parametrize("name", ["cells", "figures"])  # R8, R1
def test_a_part_of_the_run_directory_that_lies_elsewhere_is_refused(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"), Store(tmp_path / "run").writing():
        pass
    assert not list(elsewhere.iterdir())


def test_the_run_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with Store(tmp_path / "link").writing():
        pass
    assert (tmp_path / "disk" / "cells").is_dir() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", ["writing", "cell"])  # R9
@pytest.mark.parametrize("kind", ["file", "dangling", "live"])
@pytest.mark.parametrize("moment", ["as the lock is taken", "as the cell is saved"])
def test_nothing_in_the_place_of_a_cell_blocks_it(tmp_path, mine, place, kind, moment):
    store, folder = Store(tmp_path / "run"), tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    path = store.cells / (f".writing-{ABC}" if place == "writing" else ABC)

    def block():
        store.cells.mkdir(parents=True, exist_ok=True)
        path.write_text("") if kind == "file" else path.symlink_to(folder if kind == "live" else tmp_path / "nowhere")

    if moment == "as the lock is taken":
        block()
    assert store.record(ABC) is None
    with store.writing():
        if moment == "as the cell is saved":
            block()
        store.save(record(), [image_sample()])
    assert store.record(ABC) == record()
    assert [path.name for path in store.cells.iterdir()] == [ABC]
    assert (folder / "mine").read_text() == "mine"


def test_other_names_among_the_cells_stay(store):  # R9
    for name in ("notes", "abc", ".writing-notes"):
        (store.cells / name).write_text("mine")
    with store.writing():
        store.save(record(status=Status.FAILED), [])
    assert {path.name for path in store.cells.iterdir()} == {ABC, "notes", "abc", ".writing-notes"}


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])  # T7
def test_a_file_system_without_locks_is_written_to_with_a_remark(tmp_path, monkeypatch, capsys, code):
    def refuse(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [image_sample()])
    assert store.record(ABC) == record()
    assert capsys.readouterr().err.count("without locks") == 1


def test_a_file_that_is_replaced_is_always_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        replace(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_backup_never_takes_a_name_that_is_taken(tmp_path):
    for content in "abc":
        (tmp_path / "file").write_text(content)
        set_aside(tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file~": "a", "file~2": "b", "file~3": "c"}


def test_temporary_files_of_a_killed_process_are_removed(store):
    (store.path / ".writing-0123456789abcdef").write_text("half")
    (store.path / ".writing-mine").write_text("mine")
    with store.writing():
        pass
    assert [path.name for path in store.path.glob(".writing-*")] == [".writing-mine"]


def test_a_link_is_no_cell_even_where_its_target_is_one(store):  # R9
    other = identity_of("other")
    (store.cells / other).symlink_to(store.cells / ABC)
    assert store.record(other) is None
