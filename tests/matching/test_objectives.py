"""Distances between updates, on numbers that can be checked by hand."""

import pytest
import torch
from torch.autograd import grad

from benchmark.base.seeds import stream
from benchmark.matching.objectives import (
    clipped,
    cosine_distance,
    gaussian_nll,
    inverse_norms,
    layerwise_cosine_distance,
    masked,
    profile_nll,
    squared_distance,
    weighted,
)


def test_cosines_of_a_zero_gradient_have_a_derivative():
    observed = {"a": torch.ones(1, 3), "b": torch.ones(1, 2)}
    for distance in (cosine_distance, layerwise_cosine_distance):
        for zeros in ({"a"}, {"a", "b"}):
            update = {n: (torch.zeros_like(v) if n in zeros else 2 * v).requires_grad_() for n, v in observed.items()}
            for gradient in grad(distance(update, observed).sum(), list(update.values())):
                assert gradient.isfinite().all()


def test_cosines_do_not_depend_on_the_scale_of_tiny_gradients():
    draw = stream(0, "tiny")
    observed, update = ({"w": torch.randn(1, 50, generator=draw)} for _ in range(2))
    small = [{"w": 1e-12 * value["w"]} for value in (update, observed)]
    for distance in (cosine_distance, layerwise_cosine_distance):
        torch.testing.assert_close(distance(*small), distance(update, observed), atol=1e-4, rtol=0)


def test_a_mask_leaves_out_pruned_coordinates_and_nothing_else():
    update, observed = {"w": torch.tensor([[1.0, 2.0, 3.0]])}, {"w": torch.tensor([[0.0, 2.0, 5.0]])}
    assert masked(squared_distance)(update, observed).item() == pytest.approx(4.0)
    assert squared_distance(update, observed).item() == pytest.approx(5.0)


def test_weights_by_norm_make_every_parameter_count_equally():
    observed = {"large": torch.tensor([[100.0, 0.0]]), "small": torch.tensor([[0.0, 1e-3]]), "none": torch.zeros(1, 2)}
    distance = weighted(squared_distance, inverse_norms)
    for name in ("large", "small"):
        assert distance({**observed, name: 2 * observed[name]}, observed).item() == pytest.approx(1.0)


def test_the_likelihood_of_pure_noise_is_half_its_degrees_of_freedom():
    noise = 0.3 * torch.randn(1, 20_000, generator=stream(0, "noise"))
    assert gaussian_nll(0.3)({"w": noise}, {"w": torch.zeros_like(noise)}).item() == pytest.approx(10_000, rel=0.05)


def test_a_guess_is_clipped_as_a_whole_and_only_if_it_is_longer():
    observed = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    update = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0], [0.4]])}
    torch.testing.assert_close(clipped(squared_distance, 1.0)(update, observed), torch.tensor([1.0, 0.25]))
    observed = {"a": torch.tensor([[0.6], [0.3]]), "b": torch.tensor([[0.8], [0.4]])}
    torch.testing.assert_close(clipped(squared_distance, 1.0)(update, observed), torch.zeros(2), atol=1e-6, rtol=0)


def test_the_profile_likelihood_has_the_gradient_at_the_best_deviation():
    """Its gradient is that of the Gaussian likelihood with the most likely deviation."""
    observed = {"w": torch.tensor([[4.0, 3.0, 2.0, 1.0]])}
    update = {"w": torch.tensor([[1.0, -2.0, 0.5, 3.0]]).requires_grad_()}
    likeliest = (squared_distance(update, observed).item() / 4) ** 0.5
    (actual,), (expected,) = (grad(d(update, observed).sum(), update["w"]) for d in (profile_nll(), gaussian_nll(likeliest)))
    torch.testing.assert_close(actual, expected)
