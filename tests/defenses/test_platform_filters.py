"""Filters of platforms, which act on the change of the weights. `tests/test_platforms.py` compares them with the platforms."""

import dataclasses
import math

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.defenses.client_dp import ClientDP
from benchmark.defenses.local_dp import LocalDP
from benchmark.defenses.percentile_privacy import PercentilePrivacy
from benchmark.defenses.svt_privacy import SVTPrivacy
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry
from benchmark.scenario import Scenario, label

UPDATE = toy().step().gradient()
FILTERS = (PercentilePrivacy(gamma=1e-5), SVTPrivacy(), LocalDP(clipping_norm=1e-4))


def flat(update):
    return torch.cat([value.flatten() for value in update.values()])


def released(defense, scenario):
    return flat(defense.release(UPDATE, scenario, stream(0, "defense")))


def test_the_smallest_coordinates_are_dropped_and_the_largest_are_clipped():
    before = flat(UPDATE)
    limit = float(before.abs().quantile(0.9))
    after = released(PercentilePrivacy(percentile=30, gamma=0.01 * limit), Scenario(local_lr=0.01))
    kept, clipped = after != 0, before.abs() > limit
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)
    assert before[kept].abs().min() >= before[~kept].abs().max()
    assert torch.equal(after[kept & ~clipped], before[kept & ~clipped])
    torch.testing.assert_close(after[clipped], limit * before[clipped].sign())


@pytest.mark.parametrize("defense", FILTERS)
def test_what_a_filter_does_to_the_weights_does_not_depend_on_the_step_size(defense):
    """The same change of the weights by other steps: half the step size, and twice the update."""
    once, scenario = released(defense, Scenario(local_lr=0.125)), Scenario(local_lr=0.0625)
    doubled = defense.release({name: 2 * value for name, value in UPDATE.items()}, scenario, stream(0, "defense"))
    torch.testing.assert_close(flat(doubled), 2 * once)
    assert not torch.allclose(released(defense, scenario), once)


def test_limits_hold_for_each_step_of_the_average_that_is_sent():
    """NVFlare's limit is for the change per step of whatever is sent."""
    scenario = Scenario(local_lr=0.1, local_steps=4, ema=0.9)
    sent = released(PercentilePrivacy(percentile=0, gamma=1e-3), scenario)
    assert float(scenario.scale * sent.abs().max() / 4) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["percentile_privacy", "svt_privacy", "local_dp", "local_dp+private_noise"])
def test_the_step_size_is_granted_shown_and_part_of_the_identity(name):
    """Without such a defense it has no effect on one step of plain SGD."""
    scenarios = (Scenario(local_lr=0.1), Scenario(local_lr=0.2))
    grid = Grid("t", ("photos",), ("tiny",), (name, "none"), ("dlg",), scenarios=scenarios, victims=1, evaluations=2)
    cells = [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label == "dlg"]
    filtered, plain = ([cell for cell in cells if (cell.defense_label == name) is mine] for mine in (True, False))
    assert [label(cell.scenario.record) for cell in filtered] == [f"16x16 t=uniform B=1 lr={lr}" for lr in ("0.1", "0.2")]
    assert len(plain) == 1 and len({cell.keys.scenario for cell in cells}) == 1
    assert toy(local_lr=0.1).observe(filtered[0].defense).local_lr == 0.1


def test_svt_sends_few_coordinates_under_the_stated_noise():
    defense, scenario = SVTPrivacy(replace=False, fraction=0.3), Scenario(local_lr=0.1)
    public, sent = defense.public(scenario), released(defense, scenario)
    assert int((sent != 0).sum()) == math.ceil(0.3 * len(sent))
    assert public.laplace_std > 20 * public.coordinate_limit == pytest.approx(20 * 1e-4)
    assert float(sent[sent != 0].std()) == pytest.approx(public.laplace_std, rel=0.1)
    assert int((released(SVTPrivacy(fraction=0.3), scenario) != 0).sum()) < SVTPrivacy(fraction=0.3).public(
        scenario
    ).kept_share * len(sent)


def test_svt_prefers_large_coordinates_only_if_epsilon_is_huge():
    """The noise of the choice grows with the number of coordinates that are sent."""
    size, scenario = flat(UPDATE).abs(), Scenario(local_lr=0.1)
    limit = float(size.quantile(0.95))

    def mean_of_sent(epsilon):
        sent = (
            released(SVTPrivacy(epsilon=epsilon, gamma=0.1 * limit, tau=0.1 * limit, fraction=0.02, replace=False), scenario)
            != 0
        )
        return float(size[sent].mean() / size.mean())

    assert mean_of_sent(1e9) > 3 and mean_of_sent(0.1) == pytest.approx(1, abs=0.2)


def test_svt_that_finds_too_few_coordinates_says_so():
    """The limit is `gamma` / lr, and a coordinate must reach it."""
    with pytest.raises(UserError, match="fewer than"):
        released(SVTPrivacy(epsilon=1e9, gamma=1.0, tau=1.0), Scenario(local_lr=0.1))


def test_the_real_epsilon_is_that_of_the_noise_over_the_clip():
    """The formula holds up to 1. Above, it may state too little. Nothing ties the sensitivity to the clip."""
    real = {epsilon: LocalDP(epsilon=epsilon, rounds=1).privacy(Scenario()).epsilon_round for epsilon in (0.5, 1.0, 10.0)}
    assert real[0.5] < 0.5 and real[1.0] < 1 and real[10.0] > 10
    hospital = LocalDP(clipping_norm=1.0, sensitivity=1e-4, epsilon=10, delta=1e-5)
    assert hospital.sigma == pytest.approx(4.845e-5, rel=1e-3)
    assert hospital.privacy(Scenario()) == ClientDP(noise_multiplier=hospital.sigma).privacy(Scenario())
    assert hospital.privacy(Scenario()).epsilon_round > 1e6
    assert LocalDP(sensitivity=0).privacy(Scenario()).epsilon_round == math.inf


@pytest.mark.parametrize("steps", [1, 4])
def test_local_dp_states_its_clip_and_its_noise_in_the_units_of_the_update(steps):
    scenario = Scenario(local_lr=0.5, local_steps=steps)
    quiet, noisy = (LocalDP(clipping_norm=1e-3, sensitivity=s) for s in (0.0, 1.0))
    sent = released(quiet, scenario)
    assert float(sent.norm()) == pytest.approx(quiet.public(scenario).update_clip_norm, rel=1e-5)
    assert float(sent.norm()) * scenario.scale == pytest.approx(1e-3, rel=1e-5)
    noise = released(noisy, scenario) - sent
    assert float(noise.std()) == pytest.approx(noisy.public(scenario).noise_std, rel=0.05)
    assert noisy.public(dataclasses.replace(scenario, clients=4)).noise_std == pytest.approx(
        noisy.public(scenario).noise_std / 2
    )


@pytest.mark.parametrize(
    ("defense", "values", "sentence"),
    [
        (PercentilePrivacy, {"percentile": 101}, "percentile must be from 0 to 100"),
        (PercentilePrivacy, {"gamma": 0}, "gamma must be above 0"),
        (SVTPrivacy, {"fraction": 0}, "fraction must be above 0"),
        (SVTPrivacy, {"tau": 1.0}, "tau must be at most gamma"),
        (LocalDP, {"epsilon": 0}, "epsilon must be above 0"),
        (LocalDP, {"delta": 1}, "delta must be at least 1e-12 and below 1"),
    ],
)
def test_impossible_parameters_are_refused_in_one_sentence(defense, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        defense(**values)


def test_secaggplus_rounds_weights_only():
    with pytest.raises(ValueError, match="needs 'message: weights'"):
        Scenario(precision="secaggplus")
