"""The distance to what one step of Adam, or rounding, leaves of the client's gradient."""

import dataclasses
import functools

import pytest
import torch

from benchmark.attacks.posterior_mode import PosteriorMode
from benchmark.attacks.residual import Residual
from benchmark.attacks.whitened import Whitened
from benchmark.base.practice import Optimiser
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.quantisation import Quantisation
from benchmark.evaluation.metrics import psnr
from benchmark.matching.defense_aware import as_trained
from benchmark.matching.intervals import bounds, within
from benchmark.matching.objectives import squared_distance
from benchmark.matching.plans import plan_for
from benchmark.matching.problem import CleanGuess, Updates

PRACTICES = [
    {"optimiser": "adam", "local_lr": 1e-4},
    {"optimiser": "adamw", "local_lr": 1e-4, "weight_decay": 0.1, "max_norm": 0.05, "message": "weights"},
    {"optimiser": "amsgrad", "local_lr": 1e-3, "weight_decay": 0.1, "precision": "bfloat16"},
    {"optimiser": "sgd", "local_lr": 0.1, "weight_decay": 0.1, "max_norm": 0.05},
    {"optimiser": "sgd", "local_lr": 0.1, "message": "weights", "precision": "float16"},
    {"optimiser": "sgd", "local_lr": 0.1, "message": "weights", "precision": "float16", "local_steps": 3},
    {"optimiser": "adamw", "local_lr": 1e-2, "eps": 1e-4, "message": "weights", "precision": "bfloat16", "local_steps": 3},
]


@functools.cache
def observed(**practice):
    scene = toy(batch=1, **practice)
    return scene, scene.observe(PlainDefense())


def guessed(observation, images, victim):
    """Return what the engine computes for these images."""
    guess = CleanGuess(images[None], victim.timesteps[None], victim.noise[None])
    return {name: value.detach() for name, value in Updates(observation, plan_for(observation).backend)(guess).items()}


@pytest.mark.parametrize("practice", PRACTICES, ids=str)
def test_the_truth_explains_the_update_and_another_image_does_not(practice):
    scene, observation = observed(**practice)
    fitted, victim = as_trained(observation, squared_distance), scene.victim
    right, wrong = (guessed(observation, images, victim) for images in (victim.images, -victim.images))
    received = {name: value[None] for name, value in observation.update.items()}
    least = 1e-9 * sum(float(value.square().sum()) for value in right.values())
    assert float(fitted(right, received)) <= least
    assert float(fitted(wrong, received)) > 1e4 * least
    plain = float(squared_distance(right, received))
    assert plain > 10 * float(fitted(right, received))


def test_the_distance_counts_what_is_missing_to_the_interval_and_moves_the_guess_there():
    low, high = {"a": torch.tensor([[-1.0, 2.0, -torch.inf]])}, {"a": torch.tensor([[1.0, torch.inf, -3.0]])}
    g = torch.tensor([[0.5, 0.0, -1.0]], requires_grad=True)
    found = within(squared_distance, (low, high))({"a": g}, {"a": torch.zeros(1, 3)})
    assert float(found.detach()) == pytest.approx(2.0**2 + 2.0**2)
    found.sum().backward()
    assert g.grad.tolist() == [[0.0, -4.0, 4.0]]


def test_an_update_that_is_exact_or_changed_after_the_training_has_no_bounds():
    adam = {"optimiser": "adam", "local_lr": 1e-4}
    assert bounds(observed()[1]) is None
    assert bounds(observed(**adam, local_steps=2)[1]) is None
    scene, observation = observed(**adam)
    assert bounds(observation) is not None
    for defense in (Clipping(clip=1e-3), GaussianNoise(), Quantisation(bits=8)):
        assert bounds(scene.observe(defense)) is None
    foreign = dataclasses.replace(observation, update={"unknown": torch.ones(3)})
    assert bounds(foreign) is None


def test_pruned_coordinates_have_no_bounds_and_do_not_count():
    observation = observed(optimiser="adam", local_lr=1e-4)[0].observe(GradientPruning(keep=0.1))
    low, high = bounds(observation)
    zero = {name: torch.zeros_like(value)[None] for name, value in observation.update.items()}
    for name, value in observation.update.items():
        pruned = value[None] == 0
        assert low[name][pruned].isinf().all() and high[name][pruned].isinf().all()
    large = {name: 1e3 * (value[None] == 0) for name, value in observation.update.items()}
    fitted = within(squared_distance, (low, high))
    assert float(fitted(large, zero)) == float(fitted(zero, zero))


ATTACKS = [Residual(evaluations=60), PosteriorMode(evaluations=60, smoothness=0.0), Whitened(evaluations=60, stage=30)]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_intervals_help(attack):
    """An attack that takes Adam's step for a gradient is behind."""
    scene, informed = observed(optimiser="adam", local_lr=1e-4)
    blind = dataclasses.replace(informed, optimiser=Optimiser(), local_lr=None)
    with_it, without = (psnr(rebuild(attack, view).clamp(-1, 1), scene.victim.images[0]) for view in (informed, blind))
    assert with_it > without + 2


def rebuild(attack, observation):
    (found,) = attack.run([observation], stream(0, "a"))
    assert found.diverged is None
    return found.images[0]
