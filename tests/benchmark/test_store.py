import dataclasses

import numpy as np
import pytest

from benchmark.errors import UserError
from benchmark.judge import Sample
from benchmark.store import Record, Status, Store


def sample(**changes):
    picture = np.linspace(-1, 1, 48, dtype=np.float32).reshape(4, 4, 3)
    values = dict(
        victim=0, image=0, source="a", status="ok", reason="", mse=0.1, psnr=10.0, ssim=0.5, lpips=None, success=False,
        timestep=200, timestep_estimate=None, timestep_error=None, noise_mse=None, loss=1e-3, evaluations=7,
        original=picture, reconstruction=picture * 0.5,
    )  # fmt: skip
    return Sample(**{**values, **changes})


def record(identity="abc", status=Status.OK, **changes):
    values = dict(
        identity=identity, status=status, reason="", config={"trial": 0}, knows="weights", adaptive=False, control=False,
        budget=7, n_total=1, seconds=1.5, peak_mib=10.0, privacy=None, lpips_missing=None, environment={},
    )  # fmt: skip
    return Record(**{**values, **changes})


def test_what_is_saved_is_read_back_to_the_bit(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    assert store.record("abc") == record()
    frame = store.samples("abc")
    assert np.array_equal(frame.original[0], sample().original)
    assert np.array_equal(frame.reconstruction[0], sample().reconstruction)
    assert frame.psnr[0] == 10.0 and frame.loss[0] == 1e-3


def test_a_cell_without_samples_is_kept_too(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(status=Status.SKIPPED), [])
    assert store.record("abc").status is Status.SKIPPED
    assert len(store.samples("abc")) == 0


def test_saving_again_replaces_the_cell_whole(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(status=Status.FAILED), [])
        store.save(record(), [sample()])
    assert store.record("abc").status is Status.OK and len(store.samples("abc")) == 1
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["abc"]
    assert sorted(p.name for p in (tmp_path / "cells" / "abc").iterdir()) == ["record.json", "samples.parquet"]


def test_only_final_ends_count_as_done():
    assert {status for status in Status if status.final} == {Status.OK, Status.SKIPPED, Status.DIVERGED}


def test_an_epsilon_without_end_survives_json(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(privacy={"epsilon_total": float("inf")}), [])
    assert float(store.record("abc").privacy["epsilon_total"]) == float("inf")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 99}', "{}"])
def test_a_damaged_record_is_a_missing_one(tmp_path, damage):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    (tmp_path / "cells" / "abc" / "record.json").write_text(damage)
    assert store.record("abc") is None


def test_a_full_disk_loses_the_cell_in_flight_only(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.writing():
        store.save(record("first"), [sample()])

        def full(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("benchmark.store._write_json", full)
        with pytest.raises(UserError, match="No space left on device; finished cells are kept"):
            store.save(record("second"), [sample()])
    assert store.record("first") is not None and store.record("second") is None
    assert [p.name for p in (tmp_path / "cells").iterdir()] == ["first"]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "cells" / ".writing-abc").mkdir(parents=True)
    with store.writing():
        assert not list((tmp_path / "cells").iterdir())


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    aside = tmp_path / "cells" / ".writing-abc"
    aside.mkdir()
    (tmp_path / "cells" / "abc").rename(aside / "abc")
    with store.writing():
        assert store.record("abc") == record()
        assert [p.name for p in (tmp_path / "cells").iterdir()] == ["abc"]


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
    assert store.record("abc") == record()


def test_samples_that_cannot_be_read_make_the_cell_missing(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [sample()])
    path = tmp_path / "cells" / "abc" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert store.record("abc") is None


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
    import json

    store = Store(tmp_path)
    with store.writing():
        store.save(record(), [])
    written = json.loads((tmp_path / "cells" / "abc" / "record.json").read_text())
    assert set(written) == {f.name for f in dataclasses.fields(Record)}
