"""The first step of Adam inverted: every coordinate of the true gradient lies inside its interval."""

import copy
import dataclasses

import pytest
import torch

from benchmark.clients.toy import PlainDefense, toy
from benchmark.closed_form.losses import is_lossy, measurements
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.local_dp import LocalDP
from benchmark.defenses.percentile_privacy import PercentilePrivacy
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.diffusion.loss import training_loss
from benchmark.matching.first_step import gradient_intervals, unit, why_unreadable

ADAM = [
    {"optimiser": "adam", "local_lr": 1e-4},
    {"optimiser": "adamw", "local_lr": 1e-4, "weight_decay": 0.01},
    {"optimiser": "adam", "local_lr": 1e-3, "weight_decay": 0.1, "eps": 1e-6},
    {"optimiser": "amsgrad", "local_lr": 1e-4, "eps": 1e-4, "beta1": 0.5, "beta2": 0.9},
    {"optimiser": "adamw", "local_lr": 1e-7},
]


def observed(**practice):
    return toy(**practice).observe(PlainDefense())


TRUTH = observed().update


def check(observation, truth=TRUTH):
    """Check that the intervals hold the truth; return the share of coordinates that are known up to 10%."""
    intervals, known = gradient_intervals(observation), []
    assert intervals.keys() == truth.keys()
    for name, interval in intervals.items():
        gradient = truth[name].double()
        assert (interval.low <= gradient).all() and (gradient <= interval.high).all(), name
        assert (interval.low <= interval.value).all() and (interval.value <= interval.high).all(), name
        assert interval.value.isfinite().all()
        read = interval.known(0.1)
        assert ((interval.value - gradient).abs() <= 0.25 * gradient.abs())[read].all()
        known.append(read.flatten())
    return float(torch.cat(known).double().mean())


@pytest.mark.parametrize("message", ["update", "weights"])
@pytest.mark.parametrize("practice", ADAM, ids=lambda practice: f"{practice['optimiser']} {practice['local_lr']}")
def test_intervals_hold_the_gradient(practice, message):
    check(observed(message=message, **practice))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("message", ["update", "weights"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_intervals_hold_the_gradient_where_messages_are_rounded(precision, message, optimiser):
    check(observed(precision=precision, message=message, optimiser=optimiser, local_lr=0.1))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_intervals_hold_the_update_of_several_steps_of_sgd(precision):
    practice = {"local_steps": 3, "local_lr": 0.1, "batch": 1}
    check(observed(message="weights", precision=precision, **practice), observed(**practice).update)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("batch", [2, 500])
def test_intervals_hold_the_gradient_where_secure_aggregation_rounds_weights(optimiser, batch):
    """The step of the rounding shrinks with the number of images, here from 2e-3 to 8e-6."""
    scene = toy(precision="secaggplus", message="weights", optimiser=optimiser, local_lr=0.1)
    known = check(toy_with_examples(scene, batch).observe(PlainDefense()))
    assert (known > 0.01) is (batch == 500 and optimiser == "sgd")


def toy_with_examples(scene, examples):
    """Return the same round of a client that reports another number of images: it is the expected one of a Poisson batch."""
    practice = dataclasses.replace(scene.scenario, sampling="poisson", sample_rate=2 / examples)
    return dataclasses.replace(scene, scenario=practice)


LOSSY = [PercentilePrivacy(), PercentilePrivacy(percentile=50, gamma=5e-5), RandomPruning(keep=0.3)]


@pytest.mark.parametrize("defense", LOSSY)
@pytest.mark.parametrize("practice", [*ADAM, {"message": "weights", "precision": "float16", "local_lr": 0.1}])
def test_intervals_hold_the_gradient_where_coordinates_are_lost(defense, practice):
    check(toy(**practice).observe(defense))


def test_a_filter_that_drops_a_tenth_leaves_the_other_coordinates_of_a_step_of_adam_readable():
    """NVFlare's defaults drop the smallest tenth. No step of this size reaches their limit."""
    practice = {"optimiser": "adam", "local_lr": 1e-4, "eps": 1e-4}
    plain, filtered = (measurements(toy(**practice).observe(defense)) for defense in (PlainDefense(), PercentilePrivacy()))
    before, after = (torch.cat([one.known.flatten() for one in found.values()]) for found in (plain, filtered))
    assert not (after & ~before).any()
    assert int((before & ~after).sum()) <= 0.1 * len(before) + 1
    for name, one in filtered.items():
        errors = (one.values - TRUTH[name]).abs()[one.known]
        assert (errors <= 2 * one.errors[one.known] + 1e-12).all()


def test_a_clipped_step_of_adam_is_not_read():
    """Its size is unknown. A clip that changed nothing is no obstacle."""
    assert "was clipped" in why_unreadable(toy(optimiser="adam").observe(Clipping(clip=0.1)))
    assert why_unreadable(toy(optimiser="adam").observe(Clipping(clip=1e6))) is None
    assert not measurements(toy(optimiser="adam").observe(LocalDP(clipping_norm=1e6)))


@pytest.mark.parametrize("message", ["update", "weights"])
@pytest.mark.parametrize(
    "practice", [{"optimiser": "sgd", "local_lr": 0.1}, *ADAM[1:3]], ids=lambda practice: practice["optimiser"]
)
def test_intervals_hold_the_gradient_behind_an_average_of_weights_and_are_wider(practice, message):
    averaged, last = (observed(message=message, **practice, **average) for average in ({"ema": 0.99}, {}))
    assert check(averaged) <= check(last)
    widths = [
        torch.cat([(one.high - one.low).flatten() for one in gradient_intervals(observation).values()])
        for observation in (averaged, last)
    ]
    assert (widths[0] >= widths[1])[widths[0].isfinite() & widths[1].isfinite()].double().mean() > 0.9


def test_large_eps_leaves_almost_all_coordinates_readable_and_a_tiny_step_none():
    readable = check(observed(optimiser="adam", local_lr=1e-2, eps=1e-2))
    hidden = check(observed(optimiser="adam", local_lr=1e-9, eps=1e-2))
    assert readable > 0.95 and hidden < 0.2


def test_steps_that_cannot_be_inverted_say_why():
    several = observed(optimiser="adam", local_steps=2, batch=1)
    assert why_unreadable(several) == "2 steps of adam lie behind the update"
    with pytest.raises(ValueError, match="2 steps of adam"):
        gradient_intervals(several)
    kept = observed(optimiser="adam", state="kept", round=3)
    assert why_unreadable(kept) == "the state of adam was kept from 2 earlier steps, which were not observed"
    with pytest.raises(ValueError, match="2 earlier steps"):
        gradient_intervals(kept)
    averaged = observed(ema=0.9, local_steps=2, batch=1)
    assert why_unreadable(averaged) == "the average of the weights of 2 steps was sent, and its rounding has no bound"
    assert why_unreadable(observed(local_steps=2, batch=1)) is None


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_unit_in_the_last_place_is_the_distance_to_the_next_number(precision):
    dtype = getattr(torch, precision)
    sizes = torch.tensor([1e-3, 0.7, 1.0, 3.0, 1000.0]).to(dtype)
    above = torch.nextafter(sizes, torch.full_like(sizes, torch.inf))
    assert unit(sizes.double(), precision).equal(above.double() - sizes.double())


def test_adam_with_large_eps_and_without_decays_is_scaled_sgd():
    practice = {"optimiser": "adam", "beta1": 0.0, "beta2": 0.0, "eps": 1e4, "local_lr": 1e3, "local_steps": 2, "batch": 1}
    adam, sgd = observed(**practice).update, observed(local_steps=2, local_lr=0.1, batch=1).update
    for name, value in sgd.items():
        torch.testing.assert_close(1e4 * adam[name], value, rtol=1e-2, atol=1e-6)


def test_one_step_of_sgd_sent_as_weights_agrees_with_the_update_to_rounding():
    received = observed(message="weights", local_lr=0.1)
    check(received)
    for name, value in received.update.items():
        torch.testing.assert_close(value, TRUTH[name], rtol=1e-4, atol=1e-6)


def test_the_step_is_that_of_torch():
    scene = toy(optimiser="adamw", local_lr=1e-3, weight_decay=0.1, batch=1, local_steps=3, max_norm=0.5)
    update = scene.observe(PlainDefense()).update
    network = scene.network
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    trained = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.1)
    victim = scene.victim
    for k in range(3):
        optimiser.zero_grad()
        one = slice(k, k + 1)
        training_loss(trained, scene.schedule, victim.images[one], victim.timesteps[one], victim.noise[one]).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 0.5)
        optimiser.step()
    for name, value in trained.named_parameters():
        torch.testing.assert_close(3e-3 * update[name], start[name] - value.detach(), rtol=1e-3, atol=1e-7)


def test_a_clipped_gradient_with_weight_decay_is_not_read():
    """The decay was clipped with it, by an unknown factor."""
    assert "was clipped" in why_unreadable(toy(weight_decay=0.1).observe(Clipping(clip=1e-3)))


def test_an_average_of_weights_is_no_exact_gradient():
    """At a small step size rounding hides nearly all of it."""
    scene = toy(ema=0.9999, local_lr=1e-4)
    assert is_lossy(scene.observe(PlainDefense())) and not is_lossy(toy(local_lr=1e-4).observe(PlainDefense()))
