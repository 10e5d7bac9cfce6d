import copy
import dataclasses

import pytest
import torch

from benchmark.attacks.constant_image import ConstantImage
from benchmark.attacks.posterior_mode import PosteriorMode
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.evaluation.metrics import psnr
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry
from benchmark.types import Capability, PublicParameters
from benchmark.vectors import norm


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, observation, seed=3):
    (rebuilt,) = attack.run([observation], stream(seed, "attack"))
    return rebuilt


def with_noise_std(observation, noise_std):
    """Return an observation under a defense that discloses the noise's standard deviation."""
    return dataclasses.replace(observation, public=PublicParameters(noise_std=noise_std))


def matching_loss(observation, images):
    loss = training_loss(observation.network, observation.schedule, images, observation.timesteps, observation.noise)
    update = parameter_gradient(observation.network, loss)
    return sum((update[name] - value).square().sum().item() for name, value in observation.update.items())


def test_it_declares_its_needs_and_the_parameters_that_it_uses():
    assert PosteriorMode.needs == {Capability.PRIOR}
    assert PosteriorMode.adapts_to >= {"clip_norm", "noise_std", "draws_per_image"}


def test_without_noise_it_recovers_the_image(one):
    observation = one.observe(PlainDefense())
    rebuilt, floor = run(PosteriorMode(evaluations=110), observation), run(ConstantImage(), observation)
    reached, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert rebuilt.evaluations <= 110
    assert reached > least + 10
    assert matching_loss(observation, rebuilt.images) < 1e-3 * matching_loss(observation, floor.images)


def test_it_matches_more_closely_the_less_noise_is_disclosed(one):
    observation = one.observe(PlainDefense())
    losses = [
        matching_loss(observation, run(PosteriorMode(evaluations=50), with_noise_std(observation, std)).images)
        for std in (1e-3, 1e-2, 1e-1)
    ]
    assert losses == sorted(losses) and losses[0] < 0.1 * losses[-1]


def test_an_update_drowned_by_noise_is_ignored(one):
    observation = with_noise_std(one.observe(PlainDefense()), 1e6)
    other = dataclasses.replace(observation, update={name: -value for name, value in observation.update.items()})
    first, second = (run(PosteriorMode(evaluations=12), s).images for s in (observation, other))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def test_a_clipped_update_is_matched_after_clipping_the_guess(one):
    """Without clipping the guess, no image would explain an update this short. Clipping alone protects nothing."""
    length = norm(one.observe(PlainDefense()).update)
    observation = one.observe(DPSGD(noise_multiplier=0, clip=length / 4))
    rebuilt = run(PosteriorMode(evaluations=100), observation)
    floor = run(ConstantImage(), observation)
    reached, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert reached > least + 10


def test_private_noise_is_searched_with_its_own_density(one):
    observation = one.observe(PrivateNoise())
    rebuilt = run(PosteriorMode(evaluations=4), observation)
    assert rebuilt.noise.shape == observation.batch_shape
    drowned = run(PosteriorMode(evaluations=20), with_noise_std(observation, 1e6))
    assert drowned.noise.abs().max() < 0.1, "noise that the update does not determine stays at its mode, 0"


def test_victims_under_different_disclosures_are_attacked_as_alone(one):
    observation = [with_noise_std(one.observe(PlainDefense()), std) for std in (1e-3, 1e-1)]
    attack = PosteriorMode(evaluations=9)
    together = attack.run(observation, stream(3, "attack"))
    for both, alone in zip(together, observation, strict=True):
        torch.testing.assert_close(both.images, run(attack, alone).images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("fields", "reason"), [({"evaluations": 2}, "at least 3"), ({"smoothness": -1.0}, "at least 0")])
def test_impossible_fields_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        PosteriorMode(**fields)


def test_another_prior_gives_other_images(one):
    """A smoke test: it does not say which images are better."""
    observation = with_noise_std(one.observe(PlainDefense()), 1e-2)
    assert observation.prior is not None
    blank = copy.deepcopy(observation.prior.network)
    for parameter in blank.parameters():
        parameter.zero_()
    other = dataclasses.replace(observation, prior=dataclasses.replace(observation.prior, network=blank))
    first, second = (run(PosteriorMode(evaluations=30), s).images for s in (observation, other))
    assert (first - second).abs().max() > 0.01


def test_it_is_skipped_where_no_prior_is_granted():
    grid = Grid("t", ("photos",), ("tiny", "tiny:trained"), ("none",), ("posterior_mode",), victims=1, evaluations=3)
    cells = [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label.startswith("posterior_mode")]
    assert [cell.missing for cell in cells] == [{Capability.PRIOR}, frozenset()]
