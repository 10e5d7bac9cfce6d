"""Tests of epsilon against Google's accountants, and of which networks allow per-example gradients."""

import math

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from benchmark.base.errors import UserError
from benchmark.base.spec import Spec
from benchmark.clients.privacy import check_per_example, epsilon, rdp_epsilon
from benchmark.clients.toy import toy
from benchmark.diffusion.family import families
from benchmark.diffusion.models import build_process, resolve_model
from benchmark.diffusion.presets import PRESETS

SETTINGS = [(1.1, 0.01, 1000, 1e-5), (2.0, 1.0, 100, 1e-5), (0.8, 0.05, 200, 1e-6)]


def google(accountant, noise_multiplier, sample_rate, steps, delta):
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    event = dp_accounting.PoissonSampledDpEvent(sample_rate, event) if sample_rate < 1 else event
    return accountant.compose(event, steps).get_epsilon(delta)


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), SETTINGS)
def test_epsilon_agrees_with_google_s(sigma, q, steps, delta):
    prv, accountant = epsilon(sigma, q, steps, delta)
    assert accountant == "PRV"
    assert prv == pytest.approx(google(PLDAccountant(), sigma, q, steps, delta), abs=0.03)
    assert rdp_epsilon(sigma, q, steps, delta) == pytest.approx(google(RdpAccountant(), sigma, q, steps, delta), rel=0.02)


def test_the_tight_accountant_is_below_the_loose_one():
    for setting in SETTINGS:
        assert epsilon(*setting)[0] <= rdp_epsilon(*setting)


def test_without_noise_there_is_no_guarantee():
    assert epsilon(0, 1.0, 1, 1e-5) == (math.inf, "none")


def test_a_network_that_mixes_examples_is_refused_with_the_layer_and_the_fix():
    network = toy().network
    network.unet.conv_norm_out = torch.nn.BatchNorm2d(network.unet.conv_norm_out.num_channels)
    with pytest.raises(UserError, match=r"conv_norm_out' \(BatchNorm2d\) mixes the examples .* use a model with GroupNorm"):
        check_per_example(network)


def test_a_network_that_is_fine_stays_in_evaluation_mode():
    network = toy().network
    check_per_example(network)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_per_example_gradients(preset):
    """Check that no layer of a preset is refused. The weights do not matter, so they are not allocated."""
    family = families()[PRESETS[preset].family]
    with torch.device("meta"):
        network = family.network(PRESETS[preset].config)
    denoiser = family.denoiser(network, build_process(resolve_model(Spec(preset))).times)
    assert any(isinstance(module, torch.nn.Conv2d) for module in denoiser.modules())
    check_per_example(denoiser)
