"""A diagnosis against the truth of small rounds, the expectations of attacks, and how they reach records and tables."""

import dataclasses
import json

import pytest
import torch

from benchmark.attacks._span_search import complete_spans
from benchmark.attacks.activations import Activations
from benchmark.attacks.dlg import DLG
from benchmark.attacks.residual import Residual
from benchmark.attacks.spans import Spans
from benchmark.base.seeds import stream
from benchmark.cli import main
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import PlainDefense, toy
from benchmark.closed_form.sites import sites
from benchmark.closed_form.timesteps import UnreadableTimesteps
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.defenses.private_timestep import PrivateTimestep
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.diagnosis import _singular_values, diagnose
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.experiment.records import to_json, to_record
from benchmark.experiment.store import Status, Store
from benchmark.outlook import Outlook, Prediction, combined, unknown
from benchmark.registry import Registry
from benchmark.report.expected import Score, notes_on_expectations, outcomes, score
from benchmark.report.leaderboard import leaderboard
from benchmark.report.results import read_results
from tests.benchmark.stores import add, identity_of
from tests.scenes import run_cell

READERS = (Activations(), Spans(), DLG(), Residual())
"""Attacks that read private timesteps or refuse the update."""


PRUNING = Stacked((RandomPruning(keep=0.1), PrivateNoiseTimestep()))
"""Hides the timesteps from attacks that do not use what it states."""


def wide(batch=1, **practice):
    """Return a round on a network with 64 channels at 4x4, which tells up to four images apart."""
    return toy(batch=batch, channels=(16, 64), **practice)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_ranks_count_the_images_even_at_one_common_timestep(batch):
    """Four images have 64 patches for 64 channels: then a full rank proves no number, but the timesteps still do."""
    found = diagnose(wide(batch, timesteps="uniform").observe(PrivateNoiseTimestep()))
    assert (found.images, found.estimated_images) == (batch, batch)
    if batch < 4:
        assert diagnose(wide(batch).observe(PlainDefense())).estimated_images == batch


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_complete_layers_are_those_that_spans_searches(batch):
    observation = wide(batch).observe(PlainDefense())
    searched = complete_spans(observation, sites(observation.network, observation.image_shape))
    assert [layer.name for layer in diagnose(observation).complete] == [site.name for site in searched]
    assert bool(searched) == (batch < 5)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 1.0])
def test_the_noise_is_measured_without_the_defense_saying_it(ratio):
    found = diagnose(wide().observe(GaussianNoise(ratio=ratio)))
    assert found.disturbed
    assert found.noise_ratio == pytest.approx(ratio, rel=0.2)


def test_an_undefended_update_shows_rounding_alone():
    found = diagnose(wide().observe(PlainDefense()))
    assert not found.disturbed
    assert found.noise_ratio < 1e-6 and found.levels is None and found.zeros < 1e-3


def test_pruning_and_rounding_show_in_the_values():
    pruned, rounded = (diagnose(wide().observe(defense)) for defense in (GradientPruning(keep=0.1), Quantisation(bits=4)))
    assert pruned.zeros == pytest.approx(0.9, abs=1e-3) and pruned.disturbed
    assert rounded.levels is not None and rounded.levels <= 2**4 - 1 and rounded.disturbed


def test_a_step_of_adam_is_no_gradient_and_no_noise():
    """Nothing is expected of it, and the share that can be read falls with the step size."""
    shares = []
    for lr in (1e-3, 1e-4, 1e-9):
        found = diagnose(wide(optimiser="adamw", local_lr=lr, message="weights", eps=1e-6).observe(PlainDefense()))
        assert found.disturbed and found.noise_ratio is None and found.estimated_images is None
        assert all(attack.outlook(found, 30.0).prediction is Prediction.UNKNOWN for attack in (Spans(), DLG(), Residual()))
        shares.append(found.read)
    foreign = dataclasses.replace(wide(optimiser="adam").observe(PlainDefense()), update={"unknown": torch.ones(3)})
    assert diagnose(foreign).read == 0
    assert shares[0] > shares[1] > 0.01 > shares[2]  # biases that start at zero are rounded hardly at all


def test_nothing_is_expected_under_unknown_dropout():
    found = diagnose(wide(dropout=0.3).observe(PlainDefense()))
    assert found.disturbed
    assert all(attack.outlook(found, 30.0).prediction is Prediction.UNKNOWN for attack in (Spans(), DLG(), Activations()))


def test_timesteps_are_granted_or_read_or_the_reason_is_given():
    scene = wide(2, timesteps=(7, 500))
    granted, private = diagnose(scene.observe(PlainDefense())), diagnose(scene.observe(PrivateTimestep()))
    assert granted.timesteps == private.timesteps == (7, 500)
    assert granted.timesteps_granted and not private.timesteps_granted
    noisy = dataclasses.replace(scene.observe(DPSGD(noise_multiplier=1.0)), timesteps=None)
    assert diagnose(noisy).timesteps is None and "stand out" in diagnose(noisy).unreadable


def test_timesteps_are_read_again_only_with_a_stated_loss(monkeypatch):
    found = diagnose(wide(timesteps=(200,)).observe(PRUNING))
    assert (found.timesteps, found.adaptive_timesteps) == (None, (200,))
    assert found.unreadable and not found.adaptive_unreadable
    assert (found.adapted.timesteps, found.adapted.unreadable) == ((200,), "")
    monkeypatch.setattr("benchmark.diagnosis.read_timesteps", lambda observation, adaptive: _refuse(adaptive))
    for defense, unreadable in ((PRUNING, "adaptive"), (PrivateNoiseTimestep(), "plain")):
        found = diagnose(wide().observe(defense))
        assert (found.unreadable, found.adaptive_unreadable) == ("plain", unreadable)


def _refuse(adaptive):
    raise UnreadableTimesteps("adaptive" if adaptive else "plain")


@pytest.mark.parametrize(("budget", "hopeless"), [(3, (DLG, Residual)), (100_000, DLG)])
def test_pruning_and_rounding_decide_nothing_where_the_attack_uses_what_is_stated(budget, hopeless):
    """A small budget decides only for a search that starts from no layers."""
    for loss in (RandomPruning(keep=0.1), GradientPruning(keep=0.1), Quantisation(bits=2)):
        found = diagnose(wide().observe(Stacked((loss, PrivateNoiseTimestep()))))
        for attack in READERS:
            outlook = dataclasses.replace(attack, evaluations=budget).outlook(found, 30.0)
            assert (outlook.prediction is Prediction.NOT_RECOVERED) == isinstance(attack, hopeless)


def test_singular_values_of_the_gram_matrix_are_those_of_the_matrix():
    rows = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    for matrix in (rows, rows.T):
        torch.testing.assert_close(_singular_values(matrix), torch.linalg.svdvals(matrix.double()), rtol=1e-7, atol=0)


def test_a_diagnosis_draws_nothing_and_changes_nothing():
    observation = wide(2).observe(PrivateNoise())
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in observation.network.state_dict().items()}
    assert diagnose(observation) == diagnose(observation)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in observation.network.state_dict().items())
    assert not any(module._forward_hooks for module in observation.network.modules())


def test_an_update_that_is_not_finite_is_diagnosed_and_nothing_is_expected():
    observation = wide().observe(PlainDefense())
    name = next(iter(observation.update))
    broken = dataclasses.replace(observation, update={**observation.update, name: observation.update[name] * torch.nan})
    found = diagnose(broken)
    assert not found.convolutions and "not finite" in found.problem
    assert {attack.outlook(found, 30.0).prediction for attack in READERS} == {Prediction.NOT_RECOVERED}


@pytest.mark.parametrize("attack", READERS, ids=lambda attack: type(attack).__name__)
def test_a_refusal_is_expected_exactly_where_the_attack_refuses(attack):
    """Compare with the attack itself.

    The cases: two timesteps, granted noise in an unknown order, noise that hides the timesteps, and pruning that hides them
    from attacks that do not use what the defense states.
    """
    short = dataclasses.replace(attack, evaluations=3)
    clear, mixed = wide(2, timesteps=(7, 500)), wide(2, timesteps=(7, 500))
    hidden = dataclasses.replace(clear.observe(DPSGD(noise_multiplier=1.0)), timesteps=None)
    for observation, refuses in (
        (clear.observe(PrivateNoiseTimestep()), False),
        (mixed.observe(PrivateTimestep()), True),
        (hidden, True),
        (wide().observe(PRUNING), isinstance(attack, DLG)),
    ):
        (rebuilt,) = short.run([observation], stream(0, "a"))
        outlook = dataclasses.replace(attack, evaluations=100_000).outlook(diagnose(observation), 30.0)
        assert bool(rebuilt.diverged) == refuses
        assert (outlook.prediction is Prediction.NOT_RECOVERED) == refuses


def test_more_noise_and_less_budget_never_let_expect_more():
    order = [Prediction.NOT_RECOVERED, Prediction.UNKNOWN, Prediction.RECOVERED]
    found = [diagnose(wide().observe(GaussianNoise(ratio=ratio))) for ratio in (0.001, 1.0, 30.0, 1000.0)]
    for attack in READERS:
        ranks = [order.index(attack.outlook(diagnosis, 30.0).prediction) for diagnosis in found]
        assert ranks == sorted(ranks, reverse=True) and ranks[-1] == 0
        few, many = (
            order.index(
                dataclasses.replace(attack, evaluations=budget)
                .outlook(diagnose(wide().observe(PlainDefense())), 30.0)
                .prediction
            )
            for budget in (3, 100_000)
        )
        assert few < many == 2


def test_updates_vote_and_a_tie_is_unknown():
    yes, no = Outlook(Prediction.RECOVERED, "a"), Outlook(Prediction.NOT_RECOVERED, "b")
    assert combined([yes, no, yes]) == yes
    assert combined([yes, no]).prediction == combined([yes, no, unknown("c")]).prediction == Prediction.UNKNOWN


GRID = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg", "gidm_plus"), victims=1, evaluations=3)


def cells():
    return {cell.attack_label: cell for cell in plan(GRID, Registry(), "cpu")}


def test_a_record_says_what_was_expected_and_an_error_there_costs_nothing(monkeypatch):
    planned = cells()
    outcome = run_cell(planned["dlg"])
    assert (outcome.record.expected, bool(outcome.record.expected_reason)) == ("unknown", True)
    assert run_cell(planned["constant_image"]).record.expected is None
    monkeypatch.setattr("benchmark.experiment.expectation.diagnose", lambda observation: 1 / 0)
    broken = run_cell(planned["dlg"])
    assert (broken.record.status, broken.record.expected) == (Status.OK, "unknown")
    assert "ZeroDivisionError" in broken.record.expected_reason
    assert (broken.samples[0].reconstruction == outcome.samples[0].reconstruction).all()


def test_a_record_from_before_expectations_is_read(tmp_path):
    from benchmark.experiment.records import checksum
    from tests.benchmark.stores import ABC, record

    values = dataclasses.asdict(record())
    del values["expected"], values["expected_reason"]
    values["checksum"] = checksum(values)
    old = to_record(to_json(values).decode(), ABC)
    assert (old.expected, old.expected_reason) == (None, "")
    values["expected"] = "perhaps"
    values["checksum"] = checksum(values)
    with pytest.raises(Exception, match="expected cannot be"):
        to_record(json.dumps(values, default=str), ABC)


def test_the_score_counts_each_expectation_against_its_outcome():
    pairs = [("recovered", True), ("recovered", False), ("not recovered", False), ("unknown", True), ("unknown", False)]
    assert score(pairs) == Score(2, 1, 1, 1, 2, 1)


def test_the_leaderboard_scores_attacks_by_their_median_and_lost_images_count_as_lost(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        saved = [
            add(store, "constant_image", [10.0] * 4),
            add(store, "random_guess", [8.0] * 4),
            add(store, "strong", [40.0, 50.0, 29.0, 35.0], expected="recovered", expected_reason="wide layers"),
            add(store, "fragile", [90.0, None, None, None], expected="recovered"),
            add(store, "weak", [12.0] * 4, expected="not recovered"),
            add(store, "quiet", [31.0] * 4, expected="unknown"),
            add(store, "picky", [], status=Status.SKIPPED, expected=None),
        ]
        store.save_plan("A title", 30.0, {}, [*saved, identity_of("unfinished")])
    table = leaderboard(read_results(store))
    assert table.set_index("attack").expected_reason["strong"] == "wide layers"
    assert score(outcomes(table, 30.0)) == Score(2, 1, 1, 1, 1, 1)
    (note,) = notes_on_expectations(table, 30.0)
    assert "recovered for 2 attacks, of which 1 did it" in note
    assert not notes_on_expectations(table.assign(expected=""), 30.0)


def test_the_verb_prints_a_page_for_each_scene(capsys):
    defenses = "none,dp_sgd+private_noise_timestep,random_pruning[keep=0.1]+private_noise_timestep"
    axes = ["--models", "tiny", "--defenses", defenses, "--attacks", "dlg,residual,inverting_gradients"]
    assert main(["diagnose", "--grid", "smoke", *axes]) == 0
    first, second, third, rest = capsys.readouterr().out.split("\n\n")
    assert not rest.strip()
    assert "none · photos" in first and "granted: " in first and "unet.mid_block" in first and "dlg (" in first
    assert "private and not readable" in second and "dlg" in second and "not recovered, the timestep is private" in second
    assert "inverting_gradients: skipped, needs the noise" in second
    assert "private and not readable" in third and "defense states: private, read from the update: " in third
    assert "not recovered, the timestep is private" in line_of("dlg", third)
    assert "not recovered, 20 evaluations are too few" in line_of("residual", third)


def line_of(attack, page):
    return next(line for line in page.splitlines() if line.strip().startswith(f"{attack} ("))
