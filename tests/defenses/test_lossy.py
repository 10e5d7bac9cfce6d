"""Defenses that remove part of the update, and noise relative to its size."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.defenses.client_dp import ClientDP
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.laplace_noise import LaplaceNoise
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.scenario import Scenario
from benchmark.vectors import level_width, norm, size

UPDATE = toy().step().gradient()


def released(defense, seed=0):
    return defense.release(UPDATE, Scenario(), stream(seed, "defense"))


def flat(update):
    return torch.cat([value.flatten() for value in update.values()])


@given(st.floats(1e-6, 1))
def test_a_random_share_is_kept_unchanged_and_the_rest_is_zero(keep):
    pruned, original = flat(released(RandomPruning(keep=keep))), flat(UPDATE)
    kept = pruned != 0
    assert torch.equal(pruned[kept], original[kept])
    zeros = int((original == 0).sum())
    assert max(1, round(keep * len(original))) - zeros <= int(kept.sum()) <= max(1, round(keep * len(original)))


def test_random_pruning_does_not_depend_on_the_size_of_a_coordinate():
    kept = flat(released(RandomPruning(keep=0.5))) != 0
    large = flat(UPDATE).abs() > flat(UPDATE).abs().median()
    assert float(kept[large].float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "defense", [RandomPruning(keep=1.0), Clipping(clip=1e9), GaussianNoise(ratio=0), LaplaceNoise(ratio=0)]
)
def test_a_defense_at_strength_zero_changes_no_bit(defense):
    assert all(torch.equal(value, UPDATE[name]) for name, value in released(defense).items())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_coordinate_is_rounded_to_the_nearest_level(bits):
    for name, value in released(Quantisation(bits=bits)).items():
        width = level_width(UPDATE[name], bits)
        assert value.unique().numel() <= 2**bits - 1
        assert (value - UPDATE[name]).abs().max() <= width / 2 * (1 + 1e-4)
        assert level_width(value, bits) == pytest.approx(float(width), rel=1e-5)  # so an attacker knows the rounding cells


def test_one_bit_keeps_the_signs_and_one_magnitude_per_tensor():
    for name, value in released(Quantisation(bits=1)).items():
        assert torch.equal(value.sign(), UPDATE[name].sign())
        assert value.abs().max() == pytest.approx(float(UPDATE[name].abs().mean()), rel=1e-5)


def test_a_tensor_of_zeros_is_rounded_to_zeros():
    zeros = {"a": torch.zeros(3)}
    for bits in (1, 8):
        assert torch.equal(Quantisation(bits=bits).release(zeros, Scenario(), stream(0, "d"))["a"], zeros["a"])


def test_a_clipped_update_keeps_its_direction_and_is_as_long_as_the_clip():
    clipped = released(Clipping(clip=1e-3))
    assert norm(clipped) == pytest.approx(1e-3, rel=1e-5)
    assert torch.allclose(flat(clipped) / norm(clipped), flat(UPDATE) / norm(UPDATE), atol=1e-7)


@pytest.mark.parametrize("defense", [GaussianNoise, LaplaceNoise])
@pytest.mark.parametrize("ratio", [0.1, 3.0])
def test_noise_is_as_large_as_its_share_of_the_update(defense, ratio):
    noise = flat(released(defense(ratio=ratio))) - flat(UPDATE)
    assert float(noise.norm()) == pytest.approx(ratio * norm(UPDATE), rel=0.05)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(len(noise))


def test_noise_is_gaussian_or_laplacian_as_named():
    """The mean magnitude over the standard deviation is sqrt(2 / pi) for Gauss and 1 / sqrt(2) for Laplace."""
    for defense, expected in ((GaussianNoise, math.sqrt(2 / math.pi)), (LaplaceNoise, math.sqrt(0.5))):
        noise = flat(released(defense(ratio=1e3))) - flat(UPDATE)
        assert float(noise.abs().mean() / noise.std()) == pytest.approx(expected, rel=0.03)


def test_client_dp_clips_the_update_and_adds_the_stated_noise():
    quiet, noisy = released(ClientDP(noise_multiplier=0, clip=0.01)), released(ClientDP(noise_multiplier=2, clip=0.01))
    assert norm(quiet) == pytest.approx(0.01, rel=1e-5)
    noise = flat(noisy) - flat(quiet)
    assert float(noise.std()) == pytest.approx(ClientDP(noise_multiplier=2, clip=0.01).public(Scenario()).noise_std, rel=0.05)


def test_the_stated_noise_of_aggregated_clients_is_that_of_their_mean():
    scene = toy(batch=1, clients=4)
    quiet, noisy = (scene.observe(ClientDP(noise_multiplier=sigma, clip=0.1)) for sigma in (0.0, 3.0))
    noise = flat(noisy.update) - flat(quiet.update)
    assert noisy.public.noise_std == pytest.approx(0.15)
    assert float(noise.std()) == pytest.approx(0.15, rel=0.05)


def test_client_level_epsilon_does_not_depend_on_local_steps():
    one, several = (ClientDP(rounds=10).privacy(Scenario(local_steps=steps)) for steps in (1, 5))
    assert one == several and "client" in one.adjacency and one.sample_rate == 1


def test_noise_is_fresh_and_repeats_with_its_stream():
    first, again, other = (flat(released(GaussianNoise(), seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("defense", "values", "sentence"),
    [
        (RandomPruning, {"keep": 0}, "keep must be above 0"),
        (Quantisation, {"bits": 0}, "bits must be from 1 to 16"),
        (Clipping, {"clip": 0}, "clip must be above 0"),
        (GaussianNoise, {"ratio": -1}, "ratio must be at least 0"),
        (LaplaceNoise, {"ratio": math.nan}, "ratio must be at least 0"),
        (ClientDP, {"delta": 0}, "delta must be at least 1e-12 and below 1"),
        (ClientDP, {"noise_multiplier": -1}, "noise_multiplier must be at least 0"),
    ],
)
def test_impossible_parameters_are_refused_in_one_sentence(defense, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        defense(**values)


def test_vectors_are_measured_over_all_coordinates():
    assert size(UPDATE) == len(flat(UPDATE))
    assert norm(UPDATE) == pytest.approx(float(flat(UPDATE).norm()), rel=1e-5)
