import dataclasses
import textwrap

import pytest
import torch

from benchmark.grid import Grid, plan
from benchmark.registry import Registry
from benchmark.runner import run_cell, scene
from benchmark.scenario import Scenario
from benchmark.store import Status

BASE = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), victims=2, evaluations=2)


def cell(grid=BASE, attack="dlg", registry=None, defense="none"):
    cells = plan(grid, registry or Registry(), "cpu")
    return next(c for c in cells if c.attack_label == attack and c.defense_label.startswith(defense))


def plugin(tmp_path, body):
    source = f'''
        """An attack for a test.

        Source: ours
        """
        import time
        import torch
        from dataclasses import dataclass
        from benchmark.plugins import Attack
        from benchmark.types import Reconstruction

        @dataclass(frozen=True)
        class Mine(Attack):
            adapts_to = frozenset({{"kept_share"}})

            def run(self, observations, generator):
                {body}
    '''
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    return Registry([tmp_path])


def run(tmp_path, body, timeout=None, **changes):
    grid = dataclasses.replace(BASE, attacks=("mine",), **changes)
    return run_cell(cell(grid, "mine", plugin(tmp_path, body), grid.defenses[0]), timeout)


def test_the_same_cell_gives_the_same_bits():
    first, second = run_cell(cell()), run_cell(cell())
    assert first.record.status == Status.OK
    for a, b in zip(first.samples, second.samples, strict=True):
        assert (a.reconstruction == b.reconstruction).all()
        assert (a.psnr, a.loss) == (b.psnr, b.loss)


def test_an_exception_is_a_failed_row_with_its_place(tmp_path):
    record = run(tmp_path, "raise RuntimeError('over\\nboard')").record
    assert record.status == Status.FAILED
    assert record.reason.startswith("RuntimeError: over (mine.py:")
    assert record.n_total == 2


@pytest.mark.parametrize("error", ["MemoryError()", "torch.OutOfMemoryError('CUDA out of memory')"])
def test_out_of_memory_is_a_row_of_its_own(tmp_path, error):
    assert run(tmp_path, f"raise {error}").record.status == Status.OOM


def test_a_cell_that_takes_too_long_is_given_up_even_if_the_attack_swallows_exceptions(tmp_path):
    body = """
                while True:
                    try:
                        time.sleep(0.01)
                    except Exception:
                        pass"""
    outcome = run(tmp_path, body.strip(), timeout=5)
    assert outcome.record.status == Status.TIMEOUT
    assert "5 s" in outcome.record.reason


def test_a_batch_of_the_wrong_shape_is_a_failed_row(tmp_path):
    record = run(tmp_path, "return [Reconstruction(torch.zeros(1, 3, 2, 2), 0) for o in observations]").record
    assert record.status == Status.FAILED and "shape" in record.reason


def test_images_that_are_not_finite_are_a_diverged_row(tmp_path):
    outcome = run(tmp_path, "return [Reconstruction(torch.full(o.batch_shape, torch.nan), 0) for o in observations]")
    assert outcome.record.status == Status.DIVERGED
    assert outcome.record.reason.startswith("2 of 2 images diverged")


def test_one_diverged_victim_leaves_the_others_ok(tmp_path):
    body = "return [Reconstruction(torch.full(o.batch_shape, torch.nan if i else 0.0), 0) for i, o in enumerate(observations)]"
    outcome = run(tmp_path, body)
    assert outcome.record.status == Status.OK
    assert [s.status for s in outcome.samples] == ["ok", "diverged"]


def test_an_attack_cannot_spoil_the_next_cell(tmp_path):
    before = scene(cell())[1][0]
    run(tmp_path, "[p.data.zero_() for o in observations for p in o.network.parameters()]; return 1 / 0")
    after = scene(cell())[1][0]
    assert all(torch.equal(before.update[name], after.update[name]) for name in before.update)
    for p, q in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_adaptive_is_using_what_the_defense_discloses(tmp_path):
    body = "return [Reconstruction(torch.zeros(o.batch_shape), 0) for o in observations]"
    assert run(tmp_path, body, defenses=("gradient_pruning",)).record.adaptive
    assert not run(tmp_path, body, defenses=("none",)).record.adaptive
    assert not run_cell(cell(dataclasses.replace(BASE, defenses=("gradient_pruning",)), defense="gradient")).record.adaptive


def test_a_batch_with_timesteps_of_its_own_runs(tmp_path):
    grid = dataclasses.replace(BASE, scenarios=(Scenario(batch_size=3, timesteps=(5, 50, 500)),), victims=1)
    outcome = run_cell(cell(grid))
    assert [s.timestep for s in outcome.samples] == [5, 50, 500]
    assert outcome.record.n_total == 3


def test_poisson_batches_run_and_count_their_images():
    grid = dataclasses.replace(
        BASE, scenarios=(Scenario(batch_size=2, sampling="poisson", sample_rate=0.25),), defenses=("dp_sgd",), victims=3
    )
    outcome = run_cell(cell(grid, defense="dp_sgd"))
    assert outcome.record.status == Status.OK
    assert outcome.record.n_total == len(outcome.samples) >= 3
    assert outcome.record.privacy["sample_rate"] == 0.25


def test_the_record_says_how_it_was_made():
    record = run_cell(cell()).record
    assert {"torch", "diffusers", "opacus", "python", "device", "threads", "cpu"} <= set(record.environment)
    assert record.config["attack"]["restarts"] == 1
    assert record.config["model"]["state"] == "random"
    assert record.knows == "weights+noise+timestep"
    assert record.budget == 2 and record.peak_mib > 0
