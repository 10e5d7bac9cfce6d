import dataclasses
import textwrap

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.experiment.store import Status, Store
from benchmark.registry import Registry
from benchmark.scenario import Scenario
from tests.scenes import check, play, run_cell

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
    return run_cell(cell(grid, "mine", plugin(tmp_path, body), grid.defenses[0]), timeout=timeout)


def test_the_same_cell_gives_the_same_bits():
    first, second = run_cell(cell()), run_cell(cell())
    assert first.record.status == Status.OK
    for a, b in zip(first.samples, second.samples, strict=True):
        assert (a.reconstruction == b.reconstruction).all()
        assert (a.measured, a.loss) == (b.measured, b.loss)


def test_an_attack_cannot_hide_evaluations_that_the_engine_counted(tmp_path):
    spend = """
                from benchmark.matching.engine import Task, match
                from benchmark.matching.lbfgs import lbfgs
                from benchmark.matching.objectives import squared_distance
                from benchmark.matching.problem import clean_guess, mean_colour_start
                tasks = [Task(o, {"x_0": mean_colour_start(o)}, 3) for o in observations]
                found = match(tasks, clean_guess, squared_distance, lbfgs)
                return [Reconstruction(f.variables["x_0"], %s) for f in found]
    """
    folders = [tmp_path / name for name in ("honest", "hiding")]
    for folder in folders:
        folder.mkdir()
    honest = run(folders[0], spend % "f.evaluations").record
    assert honest.status == Status.OK and honest.environment["matching"] == "batched"
    record = run(folders[1], spend % "1").record
    assert record.status == Status.FAILED and "reports 2 evaluations, but 6 were counted" in record.reason


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
    before = play(cell())[1][0]
    run(tmp_path, "[p.data.zero_() for o in observations for p in o.network.parameters()]; return 1 / 0")
    after = play(cell())[1][0]
    assert all(torch.equal(before.update[name], after.update[name]) for name in before.update)
    for p, q in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.equal(p, q)


DEFENSE = """
\"\"\"A defense for a test.

Source: ours
\"\"\"
import time
import torch
from dataclasses import dataclass
from benchmark.plugins import Defense

@dataclass(frozen=True)
class Rough(Defense):
    def gradient(self, step, generator):
        {body}
        return step.gradient()
    {more}
"""


def run_defense(tmp_path, body="pass", more="", timeout=None, attack="oracle"):
    (tmp_path / "rough.py").write_text(DEFENSE.format(body=body, more=more))
    grid = dataclasses.replace(BASE, defenses=("rough",))
    return run_cell(cell(grid, attack, Registry([tmp_path]), "rough"), timeout=timeout)


def test_a_defense_can_spoil_neither_the_truth_nor_the_next_cell(tmp_path):
    before = play(cell())[1][0].update
    body = "[p.data.zero_() for p in step.network.parameters()]; step.victim.images.zero_()"
    outcome = run_defense(tmp_path, body)
    assert outcome.record.status == Status.OK
    assert all(abs(s.original).max() > 0 for s in outcome.samples)
    after = play(cell())[1][0].update
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_timeout_inside_a_defense_leaves_the_next_cell_whole(tmp_path):
    assert run_defense(tmp_path, "step.network.train(); time.sleep(30)", timeout=2).record.status == Status.TIMEOUT
    assert run_cell(cell()).record.status == Status.OK


@pytest.mark.parametrize("method", ["public", "privacy"])
def test_a_defense_that_cannot_describe_itself_is_a_failed_row(tmp_path, method):
    record = run_defense(tmp_path, more=f"def {method}(self, scenario): raise RuntimeError('shy')").record
    assert record.status == Status.FAILED and "shy" in record.reason


@pytest.mark.parametrize(
    ("returned", "status"),
    [
        ("Reconstruction(torch.zeros(o.batch_shape), torch.tensor(5), loss=torch.tensor(.5))", Status.OK),
        ("Reconstruction(torch.zeros(o.batch_shape), None)", Status.FAILED),
        ("Reconstruction(torch.zeros(o.batch_shape), -5)", Status.FAILED),
        ("Reconstruction(torch.zeros(o.batch_shape), 1, loss=[1.0])", Status.FAILED),
        ("Reconstruction(torch.zeros(o.batch_shape), 1, timesteps=torch.zeros(7))", Status.FAILED),
        ("o", Status.FAILED),
        ("None", Status.FAILED),
    ],
)
def test_whatever_an_attack_returns_becomes_a_row_that_can_be_saved(tmp_path, returned, status):
    outcome = run(tmp_path, f"return [{returned} for o in observations]")
    assert outcome.record.status == status
    store = Store(tmp_path / "store")
    with store.writing():
        store.save(outcome.record, outcome.samples)
    assert store.record(outcome.record.identity) == outcome.record


def test_what_is_missing_shows_before_anything_runs(tmp_path):
    grid = dataclasses.replace(BASE, datasets=("photos", "faces"), victims=81)
    with pytest.raises(UserError, match="80 faces for victims, not 81"):
        check(plan(grid, Registry(), "cpu"))


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


LOCAL = Scenario(clients=2, local_steps=2, local_lr=0.1)


@pytest.mark.parametrize(("order", "backend"), [("known", "unrolled"), ("unknown", "batched")])
def test_local_steps_of_several_clients_run_and_say_how_they_were_read(order, backend):
    outcome = run_cell(cell(dataclasses.replace(BASE, scenarios=(dataclasses.replace(LOCAL, order=order),))))
    assert outcome.record.status == Status.OK
    assert outcome.record.n_total == len(outcome.samples) == 8
    assert outcome.record.environment["matching"] == backend
    assert outcome.record.config["scenario"]["order"] == order


def test_step_size_and_order_change_no_victim_and_the_order_depends_on_no_defense():
    def played(defense="none", **changes):
        grid = dataclasses.replace(BASE, scenarios=(dataclasses.replace(LOCAL, **changes),), defenses=(defense,))
        return play(cell(grid, defense=defense))

    (plain, _), (faster, _), (shuffled, one) = played(), played(local_lr=0.2), played(order="unknown")
    for a, b, c in zip(plain, faster, shuffled, strict=True):
        for name in ("images", "timesteps", "noise"):
            assert torch.equal(getattr(a, name), getattr(b, name)) and torch.equal(getattr(a, name), getattr(c, name))
    _, other = played("gradient_pruning", order="unknown")
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.timesteps, b.timesteps) and not torch.equal(a.timesteps, plain[0].timesteps)


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
    assert record.budget == 2 and record.peak_mib is None
