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


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, seen, seed=3):
    (rebuilt,) = attack.run([seen], stream(seed, "attack"))
    return rebuilt


def told(seen, noise_std):
    return dataclasses.replace(seen, public=PublicParameters(noise_std=noise_std))


def matching_loss(seen, images):
    loss = training_loss(seen.network, seen.schedule, images, seen.timesteps, seen.noise)
    update = parameter_gradient(seen.network, loss)
    return sum((update[name] - value).square().sum().item() for name, value in seen.update.items())


def test_defaults_are_those_that_are_stated():
    assert PosteriorMode() == PosteriorMode(evaluations=300, smoothness=10.0)
    assert PosteriorMode.needs == {Capability.PRIOR}
    assert PosteriorMode.adapts_to >= {"clip_norm", "noise_std", "draws_per_image"}


def test_without_noise_it_recovers_the_image(one):
    seen = one.observe(PlainDefense())
    rebuilt, floor = run(PosteriorMode(evaluations=110), seen), run(ConstantImage(), seen)
    found, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert rebuilt.evaluations <= 110
    assert found > least + 10
    assert matching_loss(seen, rebuilt.images) < 1e-3 * matching_loss(seen, floor.images)


def test_it_matches_the_better_the_more_the_update_is_trusted(one):
    seen = one.observe(PlainDefense())
    losses = [matching_loss(seen, run(PosteriorMode(evaluations=50), told(seen, std)).images) for std in (1e-3, 1e-2, 1e-1)]
    assert losses == sorted(losses) and losses[0] < 0.1 * losses[-1]


def test_where_the_noise_drowns_everything_the_update_is_ignored(one):
    seen = told(one.observe(PlainDefense()), 1e6)
    other = dataclasses.replace(seen, update={name: -value for name, value in seen.update.items()})
    first, second = (run(PosteriorMode(evaluations=12), s).images for s in (seen, other))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def test_a_clipped_update_is_matched_as_the_client_clips(one):
    """Without clipping no image would explain an update this short; with it, clipping alone protects nothing."""
    norm = sum(value.square().sum() for value in one.observe(PlainDefense()).update.values()).sqrt().item()
    seen = one.observe(DPSGD(noise_multiplier=0, clip=norm / 4))
    rebuilt = run(PosteriorMode(evaluations=110), seen)
    floor = run(ConstantImage(), seen)
    found, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert found > least + 10


def test_private_noise_is_searched_with_its_own_density(one):
    seen = one.observe(PrivateNoise())
    rebuilt = run(PosteriorMode(evaluations=40), seen)
    assert rebuilt.noise.shape == seen.batch_shape
    drowned = run(PosteriorMode(evaluations=40), told(seen, 1e6))
    assert drowned.noise.abs().max() < 0.1, "what the update does not tell of the noise is left at its mode, 0"


def test_victims_under_different_disclosures_are_attacked_as_alone(one):
    seen = [told(one.observe(PlainDefense()), std) for std in (1e-3, 1e-1)]
    attack = PosteriorMode(evaluations=9)
    together = attack.run(seen, stream(3, "attack"))
    for both, alone in zip(together, seen, strict=True):
        torch.testing.assert_close(both.images, run(attack, alone).images, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("fields", "reason"), [({"evaluations": 2}, "at least 3"), ({"smoothness": -1.0}, "at least 0")])
def test_impossible_fields_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        PosteriorMode(**fields)


def test_the_prior_has_a_say(one):
    seen = told(one.observe(PlainDefense()), 1e-2)
    assert seen.prior is not None
    blank = copy.deepcopy(seen.prior.network)
    for parameter in blank.parameters():
        parameter.zero_()
    other = dataclasses.replace(seen, prior=dataclasses.replace(seen.prior, network=blank))
    first, second = (run(PosteriorMode(evaluations=30), s).images for s in (seen, other))
    assert (first - second).abs().max() > 0.01


def test_it_is_skipped_where_no_prior_is_granted():
    grid = Grid("t", ("photos",), ("tiny", "tiny:trained"), ("none",), ("posterior_mode",), victims=1, evaluations=3)
    cells = [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label.startswith("posterior_mode")]
    assert [cell.missing for cell in cells] == [{Capability.PRIOR}, frozenset()]
