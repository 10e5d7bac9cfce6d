"""Spans: noisy images found one at a time, and residuals solved by linear algebra, against the truth of small rounds."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks._inversion import sites
from benchmark.attacks._kronecker import metric
from benchmark.attacks._linear_residual import LinearUpdate, solve
from benchmark.attacks._span_search import Sought, SpanSearch, complete_spans
from benchmark.attacks.spans import Spans
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.evaluation.judge import judge
from benchmark.matching.search import Searches

BATCH = 4


@pytest.fixture(scope="module")
def batch():
    """Return a round of four images on a network with 64 channels at 4x4, the most that this width can tell apart."""
    return toy(batch=BATCH, channels=(16, 64), timesteps="uniform")


@pytest.fixture(scope="module")
def observation(batch):
    return batch.observe(PrivateNoise())


def spans_of(observation):
    return complete_spans(observation, sites(observation.network, observation.image_shape))


def noisy_images(scene):
    victim = scene.victim
    return scene.schedule.add_noise(victim.images, victim.timesteps, victim.noise)


def true_residuals(scene, x_t):
    victim = scene.victim
    target = scene.schedule.target(victim.images, victim.timesteps, victim.noise)
    return scene.network(x_t, victim.timesteps).detach() - target


def search_of(scene, observation, spans=None, repellers=None):
    sought = [Sought(0, int(t)) for t in scene.victim.timesteps]
    return SpanSearch(observation, [spans or spans_of(observation)], sought, repellers)


def test_only_layers_with_room_for_all_patches_are_used(batch, observation):
    spans = spans_of(observation)
    for site in sites(observation.network, observation.image_shape):
        outputs, width = site.layer.out_channels, site.layer.weight[0].numel()
        has_room = BATCH * site.height * site.width <= outputs and BATCH * site.height * site.width < width
        encoder = ".up_blocks" not in site.name and "conv_out" not in site.name
        assert (site.name in {used.name for used in spans}) == (has_room and encoder)
    assert spans
    for span in spans.values():
        torch.testing.assert_close(span @ span.T, torch.eye(len(span)), atol=1e-5, rtol=0)


def test_the_truth_lies_inside_the_spans_and_other_images_do_not(batch, observation):
    search, x_t = search_of(batch, observation), noisy_images(batch)
    true_costs, _ = search(x_t.flatten(1), range(BATCH))
    other_costs, _ = search(torch.randn(x_t.shape, generator=stream(1, "other")).flatten(1), range(BATCH))
    swapped_costs, _ = search(x_t.flip(0).flatten(1), range(BATCH))
    search.close()
    assert true_costs.max() < 1e-8
    assert other_costs.min() > 1e-2
    assert swapped_costs.min() > 1e3 * true_costs.max()  # an image does not fit another image's timestep


def test_the_gradient_of_the_cost_is_its_derivative(batch, observation):
    search = search_of(batch, observation)
    x = torch.randn(BATCH, 3 * 8 * 8, generator=stream(2, "x"))
    direction = torch.randn(x.shape, generator=stream(3, "direction"))
    slope = (search(x, range(BATCH))[1] * direction).sum(1)
    step = 1e-2
    ahead, behind = (search(x + sign * step * direction, range(BATCH))[0] for sign in (1, -1))
    search.close()
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=0.02, atol=1e-4)


def test_a_repelled_image_costs_more_where_it_was_found(batch, observation):
    x_t, spans = noisy_images(batch).flatten(1), spans_of(observation)
    free = search_of(batch, observation, spans)
    repelled = search_of(batch, observation, spans, [free.patch_spans(x_t[:1], [0], 2)])
    more = repelled(x_t, range(BATCH))[0] - free(x_t, range(BATCH))[0]
    free.close()
    repelled.close()
    assert more[0] == pytest.approx(0.1, rel=1e-3) and (more[1:] < 0.9 * more[0]).all()


def test_the_update_is_linear_in_the_residuals(batch, observation):
    """The product with the true residuals is the observed update, and both products are adjoint to each other."""
    x_t, names = noisy_images(batch), list(observation.update)
    linear = LinearUpdate(observation.network, names, x_t, batch.victim.timesteps, workers=2)
    residuals = true_residuals(batch, x_t)
    for name, value in zip(names, linear.times(residuals), strict=True):
        torch.testing.assert_close(value, observation.update[name], rtol=1e-4, atol=1e-7)
    values = [torch.randn(value.shape, generator=stream(4, name)) for name, value in observation.update.items()]
    forward = sum(float((a * b).sum()) for a, b in zip(linear.times(residuals), values, strict=True))
    back = float((residuals * linear.transposed_times(values)).sum())
    linear.close()
    assert forward == pytest.approx(back, rel=1e-4)


def test_the_metric_is_symmetric_and_positive(batch, observation):
    x_t, names = noisy_images(batch), list(observation.update)
    observed = list(observation.update.values())
    linear = LinearUpdate(observation.network, names, x_t, batch.victim.timesteps)
    weights = metric(observation.network, names, x_t, batch.victim.timesteps, observed, stream(5, "draws"))
    a, b = ([torch.randn(v.shape, generator=stream(seed, "v")) for v in observed] for seed in (6, 7))
    first, second = weights.times(a, linear.pool), weights.times(b, linear.pool)
    linear.close()
    for u, v, mu, mv in zip(a, b, first, second, strict=True):
        torch.testing.assert_close((u * mv).sum(), (v * mu).sum(), rtol=1e-3, atol=1e-3 * float(mu.norm() * v.norm()))
        assert (u * mu).sum() > 0


def test_residuals_are_solved_and_the_metric_saves_rounds(batch, observation):
    x_t, names = noisy_images(batch), list(observation.update)
    observed, truth = list(observation.update.values()), true_residuals(batch, x_t)
    linear = LinearUpdate(observation.network, names, x_t, batch.victim.timesteps, workers=2)
    weights = metric(observation.network, names, x_t, batch.victim.timesteps, observed, stream(5, "draws"))
    plain = dataclasses.replace(weights, factors=[None] * len(names), scales=[1.0] * len(names))

    def error(weights):
        path = solve(linear, weights, observed, 60)
        assert len(path) <= 61
        return float((path[-1] - truth).norm() / truth.norm())

    conditioned, unconditioned = error(weights), error(plain)
    linear.close()
    assert 5 * conditioned < unconditioned and conditioned < 0.1


def test_a_batch_is_rebuilt_although_noise_and_timesteps_are_private(batch):
    observation = batch.observe(PrivateNoiseTimestep())
    (rebuilt,) = Spans(evaluations=600).run([observation], stream(0, "attack"))
    samples = judge([batch.victim], [rebuilt], 30)
    assert rebuilt.diverged is None and rebuilt.evaluations <= 600
    assert [sample.timestep_error for sample in samples] == [0] * BATCH
    accepted = [sample for sample in samples if sample.predicted_psnr >= 30]
    assert len(accepted) >= 3
    assert all(sample.success for sample in accepted)


def test_granted_noise_needs_no_residuals():
    scene = toy(channels=(16, 64), timesteps=200)
    observation = scene.observe(PlainDefense())
    (rebuilt,) = Spans(evaluations=400).run([observation], stream(0, "attack"))
    samples = judge([scene.victim], [rebuilt], 30)
    assert rebuilt.noise is None and all(sample.success for sample in samples)
    assert all(sample.predicted_psnr <= sample.measured["psnr"] + 3 for sample in samples)


def test_too_many_images_for_the_width_are_refused_with_the_reason():
    observation = toy(batch=BATCH + 1, channels=(16, 64), timesteps="uniform").observe(PrivateNoiseTimestep())
    (rebuilt,) = Spans(evaluations=5).run([observation], stream(0, "attack"))
    assert "no layer of the encoder has as many output channels as 5 images have patches" in rebuilt.diverged


def test_images_of_one_timestep_are_told_apart():
    """All images have the timestep 200. A search that ends at an image found before is repeated, repelled from it."""
    scene = toy(batch=2, channels=(16, 64), timesteps=200)
    (rebuilt,) = Spans(evaluations=900).run([scene.observe(PrivateNoiseTimestep())], stream(0, "attack"))
    samples = judge([scene.victim], [rebuilt], 30)
    assert all(sample.success for sample in samples)


def test_half_of_the_metric_uses_other_parameters(batch, observation):
    x_t, names = noisy_images(batch), list(observation.update)
    weights = metric(
        observation.network, names, x_t, batch.victim.timesteps, list(observation.update.values()), stream(5, "draws")
    )
    half = weights.half()
    assert all(math.isfinite(scale) and scale > 0 for scale in weights.scales)
    assert [scale > 0 for scale in half.scales] == [place % 2 == 1 for place in range(len(names))]


def test_the_search_is_an_evaluator_that_spends_its_budget(batch, observation):
    search = search_of(batch, observation)
    searches = Searches(search, torch.zeros(BATCH, 192), [1] * BATCH)
    searches(torch.zeros(BATCH, 192), range(BATCH))
    search.close()
    assert searches.spent == [1] * BATCH
