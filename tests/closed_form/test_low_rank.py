"""Completion and denoising of gradients of low rank, against matrices that are known."""

import math

import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.closed_form.losses import Measurement
from benchmark.closed_form.low_rank import completed, overlapping, separate, shrunk

SIDE, OUTPUTS, CHANNELS = 2, 24, 12
"""A convolution with four positions."""


def gaussian(*shape, name="a"):
    return torch.randn(shape, generator=stream(0, name))


def gradient_of_convolution(images=1):
    """Return the weight gradient of a 3 x 3 convolution for random inputs and random gradients of its output."""
    inputs, outputs = gaussian(images, CHANNELS, SIDE, SIDE, name="in"), gaussian(images, OUTPUTS, SIDE, SIDE, name="out")
    return torch.nn.grad.conv2d_weight(inputs, (OUTPUTS, CHANNELS, 3, 3), outputs, padding=1)


def known_share(values, share, std=0.0, name="mask"):
    known = torch.rand(values.shape, generator=stream(0, name)) < share
    noisy = values + std * gaussian(*values.shape, name="noise")
    return Measurement(torch.where(known, noisy, 0.0), known, std, std)


def error(values, truth):
    return float((values - truth).square().sum() / truth.square().sum())


def test_a_matrix_of_low_rank_is_completed_from_30_percent():
    truth = gaussian(80, 3) @ gaussian(3, 200, name="b")
    found = completed(known_share(truth, 0.3), separate(3), 1, 0.01)
    assert error(found.values, truth) < 1e-8 and found.error < 1e-8


def test_a_matrix_of_higher_rank_is_refused():
    truth = gaussian(80, 9) @ gaussian(9, 200, name="b")
    assert completed(known_share(truth, 0.3), separate(3), 1, 0.01) is None


@pytest.mark.parametrize("images", [1, 2])
def test_overlapping_patches_complete_what_rank_alone_cannot(images):
    """Rank alone has more unknowns than 40% of the coordinates."""
    truth = gradient_of_convolution(images)
    measured = known_share(truth, 0.4)
    found = completed(measured, overlapping(SIDE, SIDE), images, 0.01)
    assert error(found.values, truth) < 1e-6
    if images == 2:
        assert completed(measured, separate(SIDE * SIDE), images, 0.01) is None


def test_noise_is_removed_and_the_stated_error_bounds_the_true_one():
    truth = gradient_of_convolution()
    std = 0.3 * float(truth.square().mean().sqrt())
    measured = known_share(truth, 1.0, std)
    found = completed(measured, overlapping(SIDE, SIDE), 1, math.inf)
    before, after = error(measured.values, truth), error(found.values, truth)
    assert after < 0.15 * before
    assert after < found.error


def test_understated_noise_is_noticed():
    truth = gradient_of_convolution()
    noisy = known_share(truth, 1.0, float(truth.square().mean().sqrt()))
    assert completed(Measurement(noisy.values, noisy.known, 0.0, 0.0), overlapping(SIDE, SIDE), 1, 0.5) is None


def test_the_table_holds_the_patches_of_a_convolution():
    image = gaussian(3, 4, 5)
    patches = torch.einsum("knq,cq->nck", overlapping(4, 5), image.flatten(1)).flatten(1)
    assert torch.equal(patches, torch.nn.functional.unfold(image[None], 3, padding=1)[0].T)


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_shrinkage_beats_truncation_and_the_raw_matrix_on_average(noise):
    """The stated error is the mean error of many draws of the noise."""
    rank, signal = 4, gaussian(60, 4) @ gaussian(4, 150, name="b") / 2
    errors = {"raw": 0.0, "truncated": 0.0, "shrunk": 0.0}
    stated, draws = 0.0, 40
    for draw in range(draws):
        noisy = signal + noise * gaussian(*signal.shape, name=str(draw))
        left, sigma, right = torch.linalg.svd(noisy, full_matrices=False)
        found = shrunk(Measurement(noisy, torch.ones_like(noisy, dtype=torch.bool), noise, noise), rank)
        errors["raw"] += error(noisy, signal) / draws
        errors["truncated"] += error(left[:, :rank] * sigma[:rank] @ right[:rank], signal) / draws
        errors["shrunk"] += error(found.values, signal) / draws
        stated += found.error / draws
    assert errors["shrunk"] < errors["truncated"] < errors["raw"]
    assert stated == pytest.approx(errors["shrunk"], rel=0.1)


def test_shrinkage_is_near_the_best_weights_of_the_singular_vectors():
    """The oracle knows the truth and weights each noisy singular pair by its product with the truth."""
    signal = gaussian(60, 3) @ gaussian(3, 150, name="b")
    for draw in range(10):
        noisy = signal + 2 * gaussian(*signal.shape, name=str(draw))
        left, _, right = torch.linalg.svd(noisy, full_matrices=False)
        weights = (left[:, :3].T @ signal @ right[:3].T).diagonal()
        oracle = error(left[:, :3] * weights @ right[:3], signal)
        found = shrunk(Measurement(noisy, torch.ones_like(noisy, dtype=torch.bool), 2.0, 2.0), 3)
        assert oracle <= error(found.values, signal) < 1.05 * oracle


def test_noise_alone_has_no_visible_direction():
    noisy = gaussian(60, 150)
    assert shrunk(Measurement(noisy, torch.ones_like(noisy, dtype=torch.bool), 1.1, 1.1), 4) is None
