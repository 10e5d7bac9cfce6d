"""Restored gradients of small rounds under lossy defenses."""

import pytest
import torch

from benchmark.attacks._inversion import legible
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import toy
from benchmark.closed_form.losses import Measurement, measurements
from benchmark.closed_form.restoration import restored, restored_layer
from benchmark.closed_form.sites import sites
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.laplace_noise import LaplaceNoise
from benchmark.defenses.none import NoDefense
from benchmark.defenses.percentile_privacy import PercentilePrivacy
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning

SCENE = toy(size=8, batch=1, channels=(16, 64))
TRUTH = SCENE.observe(NoDefense()).update
SITES = {site.name: site for site in sites(SCENE.network, (3, 8, 8))}
WIDE = SITES["unet.mid_block.resnets.0.conv1"]
SMALL = SITES["unet.conv_in"]
"""Its gradient has fewer coordinates than a fit has unknowns."""

MAX_ERROR = 0.01

LOSSY = [RandomPruning(keep=0.3), Quantisation(bits=8), GaussianNoise(ratio=0.05), LaplaceNoise(ratio=0.05)]


def error(values, truth):
    return float((values - truth).square().sum() / truth.square().sum())


@pytest.mark.parametrize("defense", LOSSY)
def test_a_wide_layer_is_restored_and_a_full_one_is_left_alone(defense):
    observation = SCENE.observe(defense)
    found = restored(observation, [WIDE, SMALL], MAX_ERROR)
    name = f"{WIDE.name}.weight"
    assert set(found.errors) == {WIDE.name}
    after, before = (error(view.update[name], TRUTH[name]) for view in (found.observation, observation))
    assert after < found.errors[WIDE.name] + 1e-9 and found.errors[WIDE.name] <= MAX_ERROR
    assert after < 0.2 * before
    for other in set(TRUTH) - {name}:
        assert torch.equal(found.observation.update[other], observation.update[other])
    assert set(found.legible.update) == {name}


@pytest.mark.parametrize("bits", [3, 5])
def test_coarse_rounding_is_restored_within_the_stated_error_or_not_at_all(bits):
    found = restored(SCENE.observe(Quantisation(bits=bits)), [site for site in SITES.values() if site.height <= 4], MAX_ERROR)
    for name, stated in found.errors.items():
        assert 0 <= error(found.observation.update[f"{name}.weight"], TRUTH[f"{name}.weight"]) <= stated <= MAX_ERROR


def test_exact_coordinates_stay_as_they_are():
    tensor = TRUTH[f"{WIDE.name}.weight"]
    measurement = Measurement(tensor, torch.ones_like(tensor, dtype=torch.bool), 0.0, 0.0)
    estimate = restored_layer(measurement, WIDE, 1, MAX_ERROR)
    assert torch.equal(estimate.values, tensor) and estimate.error == 0


@pytest.mark.parametrize("defense", [*LOSSY, PercentilePrivacy(percentile=60)])
def test_the_stated_size_of_the_errors_is_the_true_one(defense):
    measured = measurements(SCENE.observe(defense))
    for name in (f"{WIDE.name}.weight", "unet.time_embedding.linear_2.weight"):
        errors = (measured[name].values - TRUTH[name])[measured[name].known]
        assert float(errors.square().mean()) ** 0.5 == pytest.approx(measured[name].std, rel=0.1, abs=1e-12)


def test_clipped_coordinates_are_unknown_and_the_others_are_exact():
    defense = PercentilePrivacy(percentile=0, gamma=1e-6)
    limit = defense.public(SCENE.scenario).coordinate_limit
    for name, one in measurements(SCENE.observe(defense)).items():
        assert torch.equal(one.values[one.known], TRUTH[name][one.known])
        assert (TRUTH[name][~one.known].abs() >= 0.99 * limit).all() and one.std == 0


@pytest.mark.parametrize("defense", [PrivateNoise(), Quantisation(bits=1), Stacked((Quantisation(bits=1), PrivateNoise()))])
def test_without_a_stated_loss_the_update_stays_as_it_is(defense):
    observation = SCENE.observe(defense)
    assert not measurements(observation)
    assert legible(observation, sites(observation.network, observation.image_shape), MAX_ERROR).update == observation.update
