import dataclasses
import math

import pytest
import torch

from benchmark.attacks.constant_image import ConstantImage
from benchmark.attacks.dlg import DLG
from benchmark.attacks.inverting_gradients import InvertingGradients
from benchmark.attacks.random_guess import RandomGuess
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.evaluation.metrics import psnr

ATTACKS = [DLG(evaluations=8), InvertingGradients(evaluations=8)]


@pytest.fixture
def one():
    return toy(batch=1)


def quality(attack, scene, defense=None):
    """Return the PSNR of an attack's first image, and the reconstruction."""
    observation = scene.observe(defense or PlainDefense())
    (rebuilt,) = attack.run([observation], stream(3, "attack"))
    return psnr(rebuilt.images[0].clamp(-1, 1), scene.victim.images[0]), rebuilt


def test_budgets_and_steps_are_those_of_the_reference_code():
    """mit-han-lab/dlg, main.py: 300 steps. JonasGeiping/invertinggradients, `--optim ours`: 4,000 iterations with step 0.1."""
    assert (DLG().evaluations, DLG().restarts) == (300, 1)
    geiping = InvertingGradients()
    assert (geiping.evaluations, geiping.lr, geiping.restarts) == (4000, 0.1, 1)


def test_dlg_recovers_an_image_from_the_gradient_of_a_u_net(one):
    reached, rebuilt = quality(DLG(evaluations=110), one)
    floor, _ = quality(ConstantImage(), one)
    assert reached > 40 > floor
    assert rebuilt.evaluations <= 110 and rebuilt.loss < 1e-3


def test_inverting_gradients_rises_above_the_floor(one):
    reached, rebuilt = quality(InvertingGradients(evaluations=150), one)
    assert reached > quality(ConstantImage(), one)[0] + 5
    assert rebuilt.images.abs().max() <= 1


def test_private_noise_is_searched_together_with_the_image(one):
    """The matching loss falls although the noise is unknown."""
    losses = [quality(DLG(evaluations=n), one, PrivateNoise())[1].loss for n in (2, 40)]
    assert losses[1] < 0.2 * losses[0]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_restarts_share_the_budget_and_never_match_worse_than_their_first(attack, one):
    observation = one.observe(PlainDefense())
    single = dataclasses.replace(attack, evaluations=4).run([observation], stream(5, "a"))[0]
    several = dataclasses.replace(attack, evaluations=16, restarts=4).run([observation], stream(5, "a"))[0]
    assert several.evaluations <= 16
    assert several.loss <= single.loss * (1 + 1e-5)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda update: {name: value * math.inf for name, value in update.items()}, "not finite"),
        (lambda update: {name: value * 0 for name, value in update.items()}, "zero everywhere"),
        (lambda update: {"unknown": next(iter(update.values()))}, "which the network lacks"),
        (lambda update: {name: value[None] for name, value in update.items()}, "shape"),
    ],
)
def test_an_update_that_cannot_be_matched_says_why(attack, spoil, reason, one):
    observation = one.observe(PlainDefense())
    (rebuilt,) = attack.run([dataclasses.replace(observation, update=spoil(observation.update))], stream(0, "a"))
    assert reason in rebuilt.diverged and rebuilt.evaluations == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"restarts": 0}, "restarts must be at least 1, not 0"),
        ({"evaluations": 2, "restarts": 3}, r"restarts must be from 1 to evaluations \(2\), not 3"),
    ],
)
@pytest.mark.parametrize("kind", [DLG, InvertingGradients])
def test_impossible_budgets_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        kind(**fields)


def test_a_constant_image_is_the_public_mean_everywhere(one):
    observation = dataclasses.replace(one.observe(PlainDefense()), mean_colour=torch.tensor([0.1, -0.2, 0.3]))
    (rebuilt,) = ConstantImage().run([observation], stream(0, "a"))
    assert torch.equal(rebuilt.images, torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_a_random_guess_fills_the_range_and_ignores_the_update(one):
    observation = one.observe(PlainDefense())
    (first,) = RandomGuess().run([observation], stream(0, "a"))
    (second,) = RandomGuess().run([dataclasses.replace(observation, update={})], stream(0, "a"))
    assert torch.equal(first.images, second.images)
    assert first.images.min() < -0.9 and first.images.max() > 0.9 and first.images.abs().max() <= 1
