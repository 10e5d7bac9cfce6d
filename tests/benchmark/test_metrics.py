import itertools

import lpips as lpips_package
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import peak_signal_noise_ratio

from benchmark.base.images import to_unit
from benchmark.base.seeds import stream
from benchmark.evaluation import metrics
from benchmark.evaluation.assignment import assign

pixels = arrays(np.float32, (3, 8, 8), elements=st.floats(-1, 1, width=32)).map(torch.from_numpy)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=stream(seed, "images")) * 2 - 1


@given(pixels, pixels)
def test_psnr_is_scikit_images_with_peak_one(a, b):
    if metrics.mse(a, b) < 1e-10:
        assert metrics.psnr(a, b) == metrics.PSNR_CAP
    else:
        expected = peak_signal_noise_ratio(to_unit(a), to_unit(b), data_range=1)
        assert metrics.psnr(a, b) == pytest.approx(expected)
    assert metrics.psnr(a, b) == metrics.psnr(b, a)


@given(pixels, st.floats(0, 5))
def test_metrics_see_clipped_images_only(image, excess):
    beyond = torch.where(image > 0.5, 1 + excess, torch.where(image < -0.5, -1 - excess, image))
    clipped = beyond.clamp(-1, 1)
    for metric in (metrics.mse, metrics.psnr, metrics.ssim):
        assert metric(image, beyond) == metric(image, clipped)


def test_psnr_of_a_known_error():
    assert metrics.psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.2)) == pytest.approx(20.0, abs=1e-5)


def test_an_exact_image_counts_as_one_hundred_decibels():
    image = noise(3, 8, 8)
    assert metrics.psnr(image, image) == 100.0
    assert metrics.ssim(image, image) == pytest.approx(1.0)


@given(st.permutations(range(5)))
def test_assignment_undoes_any_permutation(order):
    originals = noise(5, 3, 8, 8)
    found = assign(originals, originals[list(order)])
    assert torch.equal(originals[list(order)][found], originals)


@given(st.integers(0, 1000))
def test_assignment_is_the_best_of_all(seed):
    a, b = noise(4, 3, 8, 8, seed=seed), noise(4, 3, 8, 8, seed=seed + 5000)

    def total(order):
        return sum(metrics.mse(a[i], b[j]) for i, j in enumerate(order))

    best = min(total(order) for order in itertools.permutations(range(4)))
    assert total(assign(a, b)) == pytest.approx(best)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision.models._utils")  # how `lpips` calls torchvision
def test_lpips_feeds_the_network_images_in_minus_one_to_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    a, b = noise(3, 64, 64), noise(3, 64, 64, seed=1)
    with torch.no_grad():
        expected = float(network((a[None] + 1) / 2, (b[None] + 1) / 2, normalize=True))
    assert metrics.lpips_with(network, a, b) == pytest.approx(expected, rel=1e-4)
    assert metrics.lpips_with(network, a, a) == 0


def test_lpips_scales_small_images_up_and_clips():
    compared = []

    class Recorder(torch.nn.Module):
        def forward(self, a, b):
            compared.extend([a, b])
            return torch.zeros(())

    metrics.lpips_with(Recorder(), torch.full((3, 16, 16), 3.0), torch.full((3, 16, 16), -3.0))
    assert [tuple(x.shape) for x in compared] == [(1, 3, 64, 64)] * 2
    assert (compared[0] == 1).all() and (compared[1] == -1).all()


def test_missing_lpips_weights_have_a_reason_and_no_value(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "AlexNet" in metrics.lpips_missing()
    assert metrics.lpips(noise(3, 64, 64), noise(3, 64, 64)) is None


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Where torch keeps AlexNet's weights, and weights of its shape."""
    from torchvision.models import alexnet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with torch.random.fork_rng():
        features = alexnet(weights=None).features
    path = tmp_path / "checkpoints" / metrics._LPIPS_BACKBONE
    return path, {f"features.{name}": tensor for name, tensor in features.state_dict().items()}


def test_weights_in_the_cache_are_used(weights):
    path, tensors = weights
    torch.save(tensors, path)
    assert metrics.lpips_missing() is None
    assert metrics.lpips(noise(3, 64, 64), noise(3, 64, 64, seed=1)) > 0


@pytest.mark.parametrize(
    "damage", ["truncated", "garbage", "empty", "a tensor less", "another shape", "code", "not finite"]
)  # R7
def test_weights_that_cannot_be_read_are_missing_with_the_reason(weights, damage):
    path, tensors = weights
    if damage == "a tensor less":
        del tensors["features.0.weight"]
    if damage == "another shape":
        tensors["features.0.weight"] = torch.zeros(3)
    if damage == "not finite":
        tensors["features.0.bias"] = torch.full((64,), float("nan"))
    torch.save(pytest.raises if damage == "code" else tensors, path)
    if damage in ("truncated", "garbage", "empty"):
        length = path.stat().st_size
        path.write_bytes({"truncated": path.read_bytes()[: length // 2], "garbage": b"x" * 1000, "empty": b""}[damage])
    reason = metrics.lpips_missing()
    assert "cannot be read: " in reason or "not finite" in reason
    assert "\n" not in reason and "weights_only" not in reason
    assert metrics.lpips(noise(3, 64, 64), noise(3, 64, 64)) is None
