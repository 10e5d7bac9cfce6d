import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmark.base.errors import UserError
from benchmark.experiment.store import Record, Status, Store
from tests.benchmark.stores import ABC, PRIVACY, identity_of, image_sample, record


def sample(**changes):
    picture = np.linspace(-1, 1, 48, dtype=np.float32).reshape(4, 4, 3)
    return image_sample(original=picture, reconstruction=picture * 0.5, **changes)


def test_what_is_saved_is_read_back_to_the_bit(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    assert store.record(ABC) == record()
    frame = store.samples(ABC)
    assert np.array_equal(frame.original[0], sample().original)
    assert np.array_equal(frame.reconstruction[0], sample().reconstruction)
    assert frame.psnr[0] == 10.0 and frame.loss[0] == 1e-3


def test_a_cell_without_samples_is_kept_too(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(status=Status.SKIPPED), [])
    assert store.record(ABC).status is Status.SKIPPED
    assert len(store.samples(ABC)) == 0


def test_saving_again_replaces_the_cell_whole(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(status=Status.FAILED), [])
        store.save(record(), [sample()])
    assert store.record(ABC).status is Status.OK and len(store.samples(ABC)) == 1
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == [ABC]
    assert sorted(p.name for p in (tmp_path / "cells" / ABC).iterdir()) == ["record.json", "samples.parquet"]


def test_only_final_ends_count_as_done():
    assert {status for status in Status if status.final} == {Status.OK, Status.SKIPPED, Status.DIVERGED}


def test_an_epsilon_without_end_survives_json(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(privacy=PRIVACY | {"epsilon_total": float("inf")}), [sample()])
    assert float(store.record(ABC).privacy["epsilon_total"]) == float("inf")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 99}', "{}"])
def test_a_damaged_record_is_a_missing_one(tmp_path, damage):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    (tmp_path / "cells" / ABC / "record.json").write_text(damage)
    assert store.record(ABC) is None


def test_a_full_disk_loses_the_cell_in_flight_only(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(identity_of("first")), [sample()])

        def full(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("benchmark.experiment.store.write_new", full)
        with pytest.raises(UserError, match="No space left on device; finished cells are kept"):
            store.save(record(identity_of("second")), [sample()])
    assert store.record(identity_of("first")) is not None and store.record(identity_of("second")) is None
    assert [p.name for p in (tmp_path / "cells").iterdir()] == [identity_of("first")]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "cells" / f".writing-{ABC}").mkdir(parents=True)
    with store.writing():
        assert not list((tmp_path / "cells").iterdir())


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    aside = tmp_path / "cells" / f".writing-{ABC}"
    aside.mkdir()
    (tmp_path / "cells" / ABC).rename(aside / ABC)
    with store.writing():
        assert store.record(ABC) == record()
        assert [p.name for p in (tmp_path / "cells").iterdir()] == [ABC]


def test_an_interrupt_while_replacing_keeps_the_earlier_outcome(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
        rename = type(tmp_path).rename

        def interrupted(path, target):
            if path.name.startswith(".writing"):
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(type(tmp_path), "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.save(record(status=Status.DIVERGED), [])
    assert store.record(ABC) == record()


def test_samples_that_cannot_be_read_make_the_cell_missing(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    path = tmp_path / "cells" / ABC / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert store.record(ABC) is None


def test_two_runs_cannot_write_to_one_directory(tmp_path):
    with Store(tmp_path).writing(), pytest.raises(UserError, match="another run"), Store(tmp_path).writing():
        pass


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), Store(tmp_path / "file").writing():
        pass


def test_a_directory_without_a_plan_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        Store(tmp_path).plan()


def test_record_and_file_have_the_same_fields(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [])
    written = json.loads((tmp_path / "cells" / ABC / "record.json").read_text())
    assert set(written) == {f.name for f in dataclasses.fields(Record)}


def test_samples_are_written_and_read_without_a_thread(tmp_path):  # R4
    store = Store(tmp_path)
    before = len(list(Path("/proc/self/task").iterdir()))
    with store.writing():
        store.save(record(n_total=9), [sample(victim=victim) for victim in range(9)])
    assert len(store.samples(ABC)) == 9
    assert len(list(Path("/proc/self/task").iterdir())) == before
