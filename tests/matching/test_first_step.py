"""The first step of Adam inverted: every coordinate of the true gradient lies inside its interval."""

import copy

import pytest
import torch

from benchmark.clients.toy import PlainDefense, toy
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


def test_large_eps_leaves_almost_all_coordinates_readable_and_a_tiny_step_none():
    readable = check(observed(optimiser="adam", local_lr=1e-2, eps=1e-2))
    hidden = check(observed(optimiser="adam", local_lr=1e-9, eps=1e-2))
    assert readable > 0.95 and hidden < 0.2


def test_steps_that_cannot_be_inverted_say_why():
    several = observed(optimiser="adam", local_steps=2, batch=1)
    assert why_unreadable(several) == "2 steps of adam lie behind the update"
    with pytest.raises(ValueError, match="2 steps of adam"):
        gradient_intervals(several)
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
