"""Spans: noisy images found one at a time, and residuals solved by linear algebra, against the truth of small rounds."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks._batch_search import SAFETY, BatchSearch, Found, remaining_error
from benchmark.attacks._kronecker import metric
from benchmark.attacks._linear_residual import LinearUpdate, nearest_parameters, solve
from benchmark.attacks._span_search import Sought, SpanSearch, complete_spans
from benchmark.attacks.spans import Spans, _precise, _solved
from benchmark.base.seeds import stream
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import PlainDefense, toy
from benchmark.closed_form.sites import sites
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.diagnosis import diagnose
from benchmark.evaluation.judge import judge
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.search import Searches
from benchmark.outlook import Prediction

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
    """The rival gives each parameter the inverse of its mean square as its weight, and no factors."""
    x_t, names = noisy_images(batch), list(observation.update)
    observed, truth = list(observation.update.values()), true_residuals(batch, x_t)
    linear = LinearUpdate(observation.network, names, x_t, batch.victim.timesteps, workers=2)
    weights = metric(observation.network, names, x_t, batch.victim.timesteps, observed, stream(5, "draws"))
    scales = [1 / float(value.square().mean() + 1e-12) for value in observed]
    plain = dataclasses.replace(weights, factors=[None] * len(names), scales=scales)

    def error(weights):
        path = solve(linear, weights, observed, 60)
        assert len(path) <= 61
        return float((path[-1] - truth).norm() / truth.norm())

    conditioned, unconditioned = error(weights), error(plain)
    linear.close()
    assert 5 * conditioned < unconditioned and conditioned < 0.02


def rebuild(scene, defense, **fields):
    """Return the samples of an attack on a round, after checks that hold for every attack."""
    (rebuilt,) = Spans(**fields).run([scene.observe(defense)], stream(0, "attack"))
    assert rebuilt.diverged is None and rebuilt.evaluations <= fields["evaluations"]
    samples = judge([scene.victim], [rebuilt], 30)
    assert all(sample.success for sample in samples if sample.accepted)
    return samples


def test_a_search_from_nearby_ends_at_the_noisy_image_of_its_timestep(batch, observation):
    """All four images of a full layer are told apart. From further away a search may end elsewhere."""
    x_t, search = noisy_images(batch).flatten(1), search_of(batch, observation)
    start = x_t + 0.1 * torch.randn(x_t.shape, generator=stream(8, "start"))
    searches = Searches(search, start, [150] * BATCH)
    lbfgs(searches)
    search.close()
    before, after = ((x - x_t).norm(dim=1) for x in (start, searches.best))
    assert (after < 0.2 * before).all() and max(searches.loss) < 1e-5


def test_an_image_found_twice_is_kept_once(batch, observation):
    twice = dataclasses.replace(observation, timesteps=batch.victim.timesteps)
    found = BatchSearch([twice], [spans_of(observation)], budget=10)
    found.x = noisy_images(batch).flatten(1)
    found.x[2] = 1.01 * found.x[0]
    found.loss = [1e-6, 1e-6, 1e-5, 1.0]
    assert found._copies() == [2]


def test_one_image_is_rebuilt_although_noise_and_timestep_are_private():
    (sample,) = rebuild(toy(batch=1, channels=(32, 128), timesteps="uniform"), PrivateNoiseTimestep(), evaluations=300)
    assert sample.success and sample.accepted and sample.timestep_error == 0


def test_images_of_a_batch_are_rebuilt_although_noise_and_timesteps_are_private():
    scene = toy(batch=2, channels=(32, 128), timesteps="uniform")
    samples = rebuild(scene, PrivateNoiseTimestep(), evaluations=600)
    assert any(sample.success for sample in samples)


def test_it_is_found_which_timestep_is_repeated():
    """Of three images two have the same timestep. The update tells the two timesteps, but not which one is repeated."""
    scene = toy(batch=3, channels=(16, 64), timesteps="uniform")
    scene.victim.timesteps[:] = torch.tensor([200, 600, 600])
    observation = scene.observe(PrivateNoiseTimestep())
    diagnosis = diagnose(observation)
    assert diagnosis.timesteps is None and diagnosis.repeated == (200, 600)
    assert Spans(evaluations=500).outlook(diagnosis, 30).prediction is not Prediction.NOT_RECOVERED
    (rebuilt,) = Spans(evaluations=500).run([observation], stream(0, "attack"))
    assert rebuilt.note.startswith("found 3 of 3") and rebuilt.timesteps.tolist() == [200, 600, 600]


def test_repeated_timesteps_are_refused_where_images_cannot_be_found_alone():
    scene = toy(batch=3, channels=(16, 32), timesteps="uniform")
    scene.victim.timesteps[:] = torch.tensor([200, 600, 200])
    observation = scene.observe(PrivateNoiseTimestep())
    assert Spans(evaluations=9).outlook(diagnose(observation), 30).prediction is Prediction.NOT_RECOVERED
    (rebuilt,) = Spans(evaluations=9).run([observation], stream(0, "attack"))
    assert "which ones is unknown" in rebuilt.diverged and rebuilt.evaluations == 0


def test_granted_noise_needs_no_residuals():
    (sample,) = rebuild(toy(batch=1, channels=(16, 64)), PlainDefense(), evaluations=150)
    assert sample.success and sample.accepted and sample.noise_mse is None


@pytest.mark.parametrize("defense", [PlainDefense(), PrivateNoiseTimestep()], ids=["noise granted", "noise private"])
@pytest.mark.parametrize("evaluations", [1, 2, 7])
def test_a_tiny_budget_is_kept_and_accepts_nothing(defense, evaluations):
    samples = rebuild(toy(batch=2, channels=(16, 64)), defense, evaluations=evaluations)
    assert not any(sample.accepted for sample in samples)


def test_too_many_images_for_the_width_are_matched_and_not_accepted():
    observation = toy(batch=BATCH + 1, channels=(16, 64), timesteps="uniform").observe(PrivateNoiseTimestep())
    (rebuilt,) = Spans(evaluations=5).run([observation], stream(0, "attack"))
    assert rebuilt.note == "no layer is wide enough: matched gradients" and rebuilt.evaluations <= 5
    assert (rebuilt.predicted_psnr == 0).all()


@pytest.mark.parametrize("seed", [0, 2])
def test_each_image_gets_its_own_granted_noise(seed):
    """Noisy images of one timestep may be found in any order. With another one's noise, a clean image would be far off."""
    scene = toy(batch=BATCH, channels=(16, 64))
    (rebuilt,) = Spans(evaluations=200).run([scene.observe(PlainDefense())], stream(seed, "attack"))
    assert all(sample.success for sample in judge([scene.victim], [rebuilt], 30))


def test_where_nothing_moves_no_error_is_predicted():
    still, moved = torch.zeros(1, 3), torch.ones(1, 3)
    assert remaining_error(still, still, still) == math.inf
    assert remaining_error(still, moved, 3 * moved) > SAFETY * 10**2  # moves of 1 and 2 do not shrink
    shrinking = remaining_error(still, moved, 1.5 * moved)  # the moves 1, 1/2, 1/4, ... end 1/2 further on
    assert shrinking == pytest.approx(SAFETY * 0.5**2)


def test_too_few_rounds_for_the_residuals_accept_nothing():
    (sample,) = rebuild(
        toy(batch=1, channels=(32, 128), timesteps="uniform"), PrivateNoiseTimestep(), evaluations=95, search_share=0.99
    )
    assert not sample.accepted


def test_a_noisy_update_is_matched_with_the_rest_of_the_budget():
    (rebuilt,) = Spans(evaluations=20).run([toy(channels=(16, 64)).observe(GaussianNoise(ratio=1))], stream(0, "attack"))
    assert rebuilt.note == "no wide layer could be restored: matched gradients" and rebuilt.evaluations <= 20


def test_images_behind_a_pruned_update_are_found_and_then_matched():
    scene = toy(batch=1, channels=(16, 64))
    (rebuilt,) = Spans(evaluations=300).run([scene.observe(Stacked((RandomPruning(keep=0.3), PrivateNoise())))], stream(0, "a"))
    assert rebuilt.note.startswith("found 1 of 1") and rebuilt.note.endswith("matched gradients")
    assert not rebuilt.predicted_psnr.any() and rebuilt.evaluations <= 300


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
def test_an_error_of_one_noisy_image_lowers_what_is_predicted_for_all(batch, observation, size):
    """The prediction is not far above the truth, although the cost of the image says nothing. It is not useless either."""
    wrong, x_t = noisy_images(batch), noisy_images(batch)
    wrong[0] += size * wrong.std() * torch.randn(wrong[0].shape, generator=stream(9, "error"))
    known = dataclasses.replace(observation, timesteps=batch.victim.timesteps)
    error = (wrong - x_t).square().flatten(1).mean(1)
    found = Found(wrong, batch.victim.timesteps, torch.full((BATCH,), 1e-9), error, spent=0)
    rebuilt = _solved(known, _precise(known, found), found, 120, stream(10, "signs"))
    samples = judge([batch.victim], [rebuilt], 30)
    excess = [sample.predicted_psnr - sample.measured["psnr"] for sample in samples]
    assert max(excess) < 3 and max(sample.predicted_psnr for sample in samples) > 3


def test_the_weights_of_the_losses_are_divided_out_of_the_residuals():
    scene = toy(batch=2, channels=(16, 64), timesteps=(150, 400), min_snr=0.5)
    observation, t = scene.observe(PlainDefense()), scene.victim.timesteps
    assert float(scene.schedule.loss_weight(t).min()) < 0.5
    found = Found(noisy_images(scene), t, torch.full((2,), 1e-9), torch.zeros(2), spent=0)
    rebuilt = _solved(observation, _precise(observation, found), found, 150, stream(10, "signs"))
    assert min(sample.measured["psnr"] for sample in judge([scene.victim], [rebuilt], 30)) > 30


def test_unknown_masks_accept_nothing():
    scene = toy(batch=1, channels=(16, 64), dropout=0.1)
    (rebuilt,) = Spans(evaluations=40).run([scene.observe(PrivateNoise())], stream(0, "attack"))
    assert not rebuilt.predicted_psnr.any()


def test_what_is_left_of_the_budget_makes_found_images_more_exact(batch, observation):
    known = dataclasses.replace(observation, timesteps=batch.victim.timesteps)
    search = BatchSearch([known], [spans_of(observation)], budget=200)
    x_t = noisy_images(batch).flatten(1)
    search.x = x_t + 1e-3 * torch.randn(x_t.shape, generator=stream(11, "start"))
    search.loss = [1e-6] * BATCH
    before = (search.x - x_t).norm(dim=1)
    search._refine()
    assert (5 * (search.x - x_t).norm(dim=1) < before).all() and max(search.loss) < 1e-8
    assert sum(search.spent) <= 200 * BATCH


def test_the_parameters_nearest_to_the_output_are_enough(batch, observation):
    """They run last, no smaller set of them holds enough coordinates, and they give the residuals in fewer rounds."""
    x_t, t, network = noisy_images(batch), batch.victim.timesteps, observation.network
    near = nearest_parameters(network, list(observation.update), x_t, t)
    sizes = [observation.update[name].numel() for name in near]
    assert near[-1] == "unet.conv_out.bias" and len(near) < len(observation.update) / 2
    assert sum(sizes) >= 16 * x_t.numel() > sum(sizes[2:])
    truth = true_residuals(batch, x_t)

    def error(names):
        observed = [observation.update[name] for name in names]
        linear = LinearUpdate(network, names, x_t, t)
        weights = metric(network, names, x_t, t, observed, stream(5, "draws"))
        path = solve(linear, weights, observed, 20)
        linear.close()
        return float((path[-1] - truth).norm() / truth.norm())

    assert 2 * error(near) < error(list(observation.update))


def test_withheld_parameters_are_not_used(batch, observation):
    x_t, t, network = noisy_images(batch), batch.victim.timesteps, observation.network
    names = [name for name in observation.update if "conv_out" not in name]
    near = nearest_parameters(network, names, x_t, t)
    assert set(near) < set(names) and nearest_parameters(network, names[:2], x_t, t) == names[:2]


@pytest.mark.parametrize(
    "practice",
    [
        {"optimiser": "adamw", "local_lr": 1e-2, "eps": 1e-3, "weight_decay": 0.01, "message": "weights"},
        {"message": "weights", "local_lr": 0.1},
    ],
    ids=["AdamW", "SGD, weights"],
)
def test_an_image_is_rebuilt_from_weights_after_one_step(practice):
    scene = toy(batch=1, channels=(16, 64), timesteps="uniform", **practice)
    (sample,) = rebuild(scene, PrivateNoiseTimestep(), evaluations=300)
    assert sample.success and sample.timestep_error == 0
    assert not sample.accepted  # the error that rounding leaves in the noisy image is not predicted


def test_nothing_comes_back_where_rounding_hides_the_step():
    scene = toy(batch=1, channels=(16, 64), timesteps="uniform", message="weights", local_lr=1e-9)
    (rebuilt,) = Spans(evaluations=20).run([scene.observe(PrivateNoiseTimestep())], stream(0, "attack"))
    assert rebuilt.diverged and "cannot be read" in rebuilt.diverged
