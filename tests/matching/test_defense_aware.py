"""What an attacker who knows the defense compares."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks.gidm_plus import EXCLUDED_LOGIT, GIDMPlus, _equal_logits
from benchmark.attacks.posterior_mode import PosteriorMode, _timesteps_of_draws
from benchmark.attacks.residual import Residual
from benchmark.base.seeds import stream
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import toy
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.dpdm import DPDM
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.laplace_noise import LaplaceNoise
from benchmark.defenses.none import NoDefense
from benchmark.defenses.private_timestep import PrivateTimestep
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.defenses.timestep_range import TimestepRange
from benchmark.defenses.withhold import Withhold
from benchmark.disclosure import User
from benchmark.evaluation.metrics import psnr
from benchmark.matching.defense_aware import as_released, distance, likelihood
from benchmark.matching.objectives import (
    distance_to_cells,
    laplace_distance,
    layerwise_cosine_distance,
    relative_noise,
    squared_distance,
)
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters

SCENE = toy(batch=1)
UPDATE = {name: value[None] for name, value in SCENE.step().gradient().items()}

PRUNED_OR_CLIPPED = [
    GradientPruning(keep=0.1),
    RandomPruning(keep=0.1),
    Clipping(clip=1e-3),
    Stacked((Clipping(clip=1e-3), GradientPruning(keep=0.1))),
]
LOSSY = [
    *PRUNED_OR_CLIPPED,
    Quantisation(bits=1),
    Quantisation(bits=4),
    Stacked((Clipping(clip=1e-3), Quantisation(bits=1))),
    Stacked((GradientPruning(keep=0.1), Quantisation(bits=4))),
]


@pytest.mark.parametrize("defense", LOSSY)
def test_the_truth_has_no_distance_to_what_a_known_defense_made_of_it(defense):
    """To the plain distance it has one."""
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    scale = float(squared_distance(UPDATE, {name: torch.zeros_like(value) for name, value in UPDATE.items()}))
    assert float(squared_distance(UPDATE, released)) > 1e-4 * scale
    assert float(distance(defense.public(Scenario()))(UPDATE, released)) < 1e-7 * scale


@pytest.mark.parametrize("defense", PRUNED_OR_CLIPPED)
def test_any_comparison_can_be_made_of_what_was_clipped_and_pruned(defense):
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    assert float(as_released(defense.public(Scenario()), layerwise_cosine_distance)(UPDATE, released)) < 1e-6


@pytest.mark.parametrize("defense", LOSSY)
def test_a_wrong_guess_has_a_distance_of_its_own(defense):
    wrong = {name: -value for name, value in UPDATE.items()}
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    fitted = distance(defense.public(Scenario()))
    assert float(fitted(wrong, released)) > 10 * float(fitted(UPDATE, released))


def test_where_nothing_is_known_the_distance_is_the_plain_one():
    assert distance(PublicParameters()) is squared_distance


def test_guesses_in_a_cell_are_alike_and_count_by_how_far_they_are_outside():
    seen = {"a": torch.tensor([[-1.0, 0.0, 1.0]])}  # two bits: levels -1, 0, 1
    cells = distance_to_cells(2)
    inside, outside = ({"a": torch.tensor([values])} for values in ([-0.6, 0.4, 0.9], [-0.4, 0.7, 1.0]))
    assert float(cells(inside, seen)) == 0
    assert float(cells(outside, seen)) == pytest.approx(0.1**2 + 0.2**2)


def test_under_laplace_noise_large_differences_count_by_their_magnitude_and_none_by_none():
    seen = {"a": torch.ones(1, 100)}
    near, far, farther = (float(laplace_distance(0.1)({"a": torch.full((1, 100), value)}, seen)) for value in (1.0, 11.0, 21.0))
    assert near == pytest.approx(0, abs=1e-4)
    assert farther - far == pytest.approx(10 * 100, rel=1e-3)


def test_the_size_of_relative_noise_follows_from_the_noisy_update():
    update = {name: 1e3 * torch.randn(1, 100_000, generator=stream(0, name)) for name in ("a", "b")}
    noisy = {name: value + 3e3 * torch.randn(value.shape, generator=stream(1, name)) for name, value in update.items()}
    assert float(relative_noise(3.0, noisy)) == pytest.approx(3e3, rel=0.02)


def test_likelihoods_are_those_of_the_noise():
    """Differences of a guess from the seen update, with the closed-form densities, but for what no guess changes."""
    other = {name: 1.1 * value for name, value in UPDATE.items()}
    difference = torch.cat([(other[name] - value).flatten() for name, value in UPDATE.items()]).double()
    sigma = float(relative_noise(3.0, UPDATE))
    gauss = [likelihood(PublicParameters(**known))(other, UPDATE) for known in ({"noise_std": sigma}, {"gaussian_ratio": 3.0})]
    expected = -torch.distributions.Normal(0, sigma).log_prob(difference) + torch.distributions.Normal(0, sigma).log_prob(
        0 * difference
    )
    for found in gauss:
        assert float(found) == pytest.approx(float(expected.sum()), rel=1e-3)
    large = {name: value + 100 * sigma for name, value in UPDATE.items()}
    count = len(difference)
    laplace = float(likelihood(PublicParameters(laplace_ratio=3.0))(large, UPDATE))
    assert laplace == pytest.approx(count * 100 * sigma / (sigma / 2**0.5), rel=0.01)


def test_pruned_coordinates_do_not_count_as_told():
    """N / 2 log D, of which only N differs."""
    pruned = {name: value[None] for name, value in SCENE.observe(GradientPruning(keep=0.1)).update.items()}
    shifted = {name: value + 1e-3 for name, value in UPDATE.items()}
    fitted = likelihood(PublicParameters(kept_share=0.1))
    gain = float(fitted({name: value + 2e-3 for name, value in UPDATE.items()}, pruned) - fitted(shifted, pruned))
    kept = sum(int((value != 0).sum()) for value in pruned.values())
    assert gain == pytest.approx(kept / 2 * math.log(4), rel=1e-3)


def rebuilt(attack, seen):
    (found,) = attack.run([seen], stream(0, "a"))
    assert found.diverged is None
    return psnr(found.images[0].clamp(-1, 1), SCENE.victim.images[0])


@pytest.mark.parametrize(
    ("defense", "by"), [(Clipping(clip=1e-3), 1.0), (Quantisation(bits=1), 1.0), (LaplaceNoise(ratio=0.3), 0)]
)
def test_knowing_the_defense_helps(defense, by):
    """The same attack, told of the defense or not; of Laplace noise the median tells at the most 3 dB more than the mean."""
    seen = SCENE.observe(defense)
    blind = dataclasses.replace(seen, public=PublicParameters())
    told, untold = (rebuilt(Residual(evaluations=80), view) for view in (seen, blind))
    assert told > untold + by


def test_adapting_changes_nothing_where_there_is_no_defense():
    seen = SCENE.observe(NoDefense())
    (a,), (b,) = (Residual(evaluations=5).run([dataclasses.replace(seen, public=public)], stream(0, "a"))
                  for public in (PublicParameters(), PublicParameters(kept_share=1.0)))  # fmt: skip
    assert torch.equal(a.images, b.images)


def test_a_withheld_embedding_is_read_from_the_blocks_and_the_rest_is_matched():
    seen = SCENE.observe(Stacked((Withhold(layers="time_embedding"), PrivateTimestep())))
    (found,) = Residual(evaluations=5).run([seen], stream(0, "a"))
    assert found.diverged is None and found.timesteps.tolist() == [200]
    (lost,) = Residual(evaluations=5).run(
        [SCENE.observe(Stacked((Withhold(layers="time_emb"), PrivateTimestep())))], stream(0, "a")
    )
    assert "left the client" in lost.diverged


def test_timesteps_that_no_client_trains_on_have_no_weight():
    seen = SCENE.observe(Stacked((TimestepRange(least=150), PrivateTimestep())))
    weights = _equal_logits(seen).softmax(-1)[0]
    assert not weights[:150].any() and torch.allclose(weights[150:], torch.tensor(1 / 850))
    assert not _equal_logits(SCENE.observe(NoDefense())).any() and EXCLUDED_LOGIT < 0
    (found,) = GIDMPlus(evaluations=6).run([seen], stream(0, "a"))
    assert found.timesteps is None or found.timesteps.min() >= 150


def test_private_draws_are_met_with_draws_of_the_attack_s_own():
    seen = SCENE.observe(DPDM(draws=4, noise_multiplier=0, clip=1e9))
    attack = PosteriorMode(evaluations=30)
    told, untold = (attack.run([view], stream(0, "a"))[0] for view in (seen, without(seen, "draws_per_image")))
    assert told.diverged is None and not torch.equal(told.images, untold.images)
    assert _timesteps_of_draws(seen, 4).tolist() == [200] * 4, "all of the toy's draws have one timestep, and it can be read"
    noisy = dataclasses.replace(SCENE.observe(DPDM(draws=4)), timesteps=None)
    assert _timesteps_of_draws(noisy, 4).tolist() == [125, 375, 625, 875]


def test_a_broken_update_of_several_draws_diverges_alone():
    good = SCENE.observe(DPDM(draws=2))
    bad = dataclasses.replace(good, update={name: torch.full_like(value, math.nan) for name, value in good.update.items()})
    lost, found = PosteriorMode(evaluations=3).run([bad, good], stream(0, "a"))
    assert lost.diverged is not None and found.diverged is None


def without(seen, field):
    return dataclasses.replace(seen, public=dataclasses.replace(seen.public, **{field: None}))


USES = [
    (Residual(evaluations=8), GradientPruning(keep=0.1), "kept_share"),
    (Residual(evaluations=8), Clipping(clip=1e-3), "update_clip_norm"),
    (Residual(evaluations=8), DPSGD(clip=1e-3), "clip_norm"),
    (Residual(evaluations=8), Quantisation(bits=2), "bits"),
    (Residual(evaluations=8), LaplaceNoise(ratio=1.0), "laplace_ratio"),
    (PosteriorMode(evaluations=8), DPSGD(), "noise_std"),
    (PosteriorMode(evaluations=8), GaussianNoise(), "gaussian_ratio"),
    (PosteriorMode(evaluations=8), DPDM(draws=3), "draws_per_image"),
    (GIDMPlus(evaluations=8), Stacked((TimestepRange(least=150), PrivateTimestep())), "least_timestep"),
]


@pytest.mark.parametrize(("attack", "defense", "field"), USES)
def test_an_attack_that_says_so_does_use_what_is_public(attack, defense, field):
    assert field in attack.adapts_to
    seen = SCENE.observe(defense)
    told, untold = (attack.run([view], stream(0, "a"))[0] for view in (seen, without(seen, field)))
    assert not torch.equal(told.images, untold.images)


def test_what_each_of_several_summed_clients_did_says_nothing_exact_of_their_mean():
    scene = toy(batch=1, clients=3)
    for defense in (Clipping(), GradientPruning(), Quantisation(), GaussianNoise(), LaplaceNoise()):
        assert not scene.observe(defense).public.disclosed


def test_every_public_parameter_is_used_by_an_attack_that_ships():
    """By an attack that is shown to above, or by the engine for all of them."""
    shown = {field for _, _, field in USES}
    names = {field.name for field in dataclasses.fields(PublicParameters)}
    assert shown == names - PublicParameters.used_by(User.ENGINE, User.LABEL)
