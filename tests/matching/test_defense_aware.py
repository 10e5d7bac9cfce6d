"""Distances for an attacker who knows the defense."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks.gidm_plus import EXCLUDED_LOGIT, GIDMPlus, equal_logits
from benchmark.attacks.posterior_mode import PosteriorMode, timesteps_of_draws
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
from benchmark.defenses.percentile_privacy import PercentilePrivacy
from benchmark.defenses.private_timestep import PrivateTimestep
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.defenses.svt_privacy import SVTPrivacy
from benchmark.defenses.timestep_range import TimestepRange
from benchmark.defenses.withhold import Withhold
from benchmark.disclosure import User
from benchmark.evaluation.metrics import psnr
from benchmark.matching.defense_aware import as_released, comparable, distance, likelihood
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
    PercentilePrivacy(percentile=20, gamma=1e-5),
]
LOSSY = [
    *PRUNED_OR_CLIPPED,
    Quantisation(bits=1),
    Quantisation(bits=4),
    Stacked((Clipping(clip=1e-3), Quantisation(bits=1))),
    Stacked((GradientPruning(keep=0.1), Quantisation(bits=4))),
    Stacked((PercentilePrivacy(percentile=20, gamma=1e-5), Quantisation(bits=4))),
]


@pytest.mark.parametrize("defense", LOSSY)
def test_the_adapted_distance_at_the_truth_is_zero(defense):
    """The plain distance is not."""
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    scale = float(squared_distance(UPDATE, {name: torch.zeros_like(value) for name, value in UPDATE.items()}))
    assert float(squared_distance(UPDATE, released)) > 1e-4 * scale
    assert float(distance(defense.public(Scenario()))(UPDATE, released)) < 1e-7 * scale


@pytest.mark.parametrize("defense", PRUNED_OR_CLIPPED)
def test_any_distance_can_be_adapted_to_clipping_and_pruning(defense):
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    assert float(as_released(defense.public(Scenario()), layerwise_cosine_distance)(UPDATE, released)) < 1e-6


@pytest.mark.parametrize("defense", LOSSY)
def test_a_wrong_guess_has_a_larger_adapted_distance(defense):
    wrong = {name: -value for name, value in UPDATE.items()}
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    fitted = distance(defense.public(Scenario()))
    assert float(fitted(wrong, released)) > 10 * float(fitted(UPDATE, released))


def test_without_a_disclosed_defense_the_distance_is_the_plain_one():
    assert distance(PublicParameters()) is squared_distance


def test_a_value_counts_by_its_distance_to_the_rounding_cell():
    observed = {"a": torch.tensor([[-1.0, 0.0, 1.0]])}  # two bits: levels -1, 0, 1
    cells = distance_to_cells(2)
    inside, outside = ({"a": torch.tensor([values])} for values in ([-0.6, 0.4, 0.9], [-0.4, 0.7, 1.0]))
    assert float(cells(inside, observed)) == 0
    assert float(cells(outside, observed)) == pytest.approx(0.1**2 + 0.2**2)


def test_a_clipped_coordinate_is_a_bound_and_the_others_are_values():
    """Under noise the bound is unknown, so the guess is clipped instead."""
    observed = {"a": torch.tensor([[0.5, -0.5, 0.5, 0.1]])}
    guess = {"a": torch.tensor([[2.0, -0.7, 0.3, 0.4]])}
    assert float(distance(PublicParameters(coordinate_limit=0.5))(guess, observed)) == pytest.approx(0.2**2 + 0.3**2)
    under_noise = distance(PublicParameters(coordinate_limit=0.5, noise_std=0.1))
    far = {"a": torch.tensor([[2.0, -0.7, 0.3, 0.9]])}
    assert float(under_noise(far, observed)) == pytest.approx(0.2**2 + 0.4**2)


def test_the_laplace_distance_grows_linearly_with_large_differences():
    """Without a difference it is zero."""
    observed, distance_of = {"a": torch.ones(1, 100)}, laplace_distance(lambda observed: relative_noise(0.1, observed))
    near, far, farther = (float(distance_of({"a": torch.full((1, 100), value)}, observed)) for value in (1.0, 11.0, 21.0))
    assert near == pytest.approx(0, abs=1e-4)
    assert farther - far == pytest.approx(10 * 100, rel=1e-3)


def test_the_size_of_relative_noise_is_estimated_from_the_noisy_update():
    update = {name: 1e3 * torch.randn(1, 100_000, generator=stream(0, name)) for name in ("a", "b")}
    noisy = {name: value + 3e3 * torch.randn(value.shape, generator=stream(1, name)) for name, value in update.items()}
    assert float(relative_noise(3.0, noisy)) == pytest.approx(3e3, rel=0.02)


def test_likelihoods_are_the_densities_of_the_noise():
    """The difference of guess and observed update has the closed-form density, except for constants."""
    other = {name: 1.1 * value for name, value in UPDATE.items()}
    difference = torch.cat([(other[name] - value).flatten() for name, value in UPDATE.items()]).double()
    sigma = float(relative_noise(3.0, UPDATE))
    gauss = [likelihood(PublicParameters(**known))(other, UPDATE) for known in ({"noise_std": sigma}, {"gaussian_ratio": 3.0})]
    expected = -torch.distributions.Normal(0, sigma).log_prob(difference) + torch.distributions.Normal(0, sigma).log_prob(
        0 * difference
    )
    for value in gauss:
        assert float(value) == pytest.approx(float(expected.sum()), rel=1e-3)
    large = {name: value + 100 * sigma for name, value in UPDATE.items()}
    count = len(difference)
    laplace = float(likelihood(PublicParameters(laplace_ratio=3.0))(large, UPDATE))
    assert laplace == pytest.approx(count * 100 * sigma / (sigma / 2**0.5), rel=0.01)


def test_pruned_coordinates_do_not_count_in_the_likelihood():
    """The likelihood is N / 2 log D for N kept coordinates; twice the difference adds N / 2 log 4."""
    pruned = {name: value[None] for name, value in SCENE.observe(GradientPruning(keep=0.1)).update.items()}
    shifted = {name: value + 1e-3 for name, value in UPDATE.items()}
    fitted = likelihood(PublicParameters(kept_share=0.1))
    gain = float(fitted({name: value + 2e-3 for name, value in UPDATE.items()}, pruned) - fitted(shifted, pruned))
    kept = sum(int((value != 0).sum()) for value in pruned.values())
    assert gain == pytest.approx(kept / 2 * math.log(4), rel=1e-3)


def reconstructed_psnr(attack, observation):
    (reconstruction,) = attack.run([observation], stream(0, "a"))
    assert reconstruction.diverged is None
    return psnr(reconstruction.images[0].clamp(-1, 1), SCENE.victim.images[0])


@pytest.mark.parametrize(
    ("defense", "evaluations", "by"),
    [
        (Clipping(clip=1e-3), 30, 1.0),
        (Quantisation(bits=1), 30, 1.0),
        (LaplaceNoise(ratio=0.3), 80, 0),
        (PercentilePrivacy(gamma=1e-5), 30, 1.0),
    ],
)
def test_knowing_the_defense_helps(defense, evaluations, by):
    """The same attack runs with and without the disclosed parameters.

    Under Laplace noise a median gains at most 3 dB on a mean. With fewer evaluations it is still behind.
    """
    informed = SCENE.observe(defense)
    blind = dataclasses.replace(informed, public=PublicParameters())
    with_it, without_it = (reconstructed_psnr(Residual(evaluations=evaluations), view) for view in (informed, blind))
    assert with_it > without_it + by


def test_adapting_to_no_defense_changes_nothing():
    observation = SCENE.observe(NoDefense())
    (a,), (b,) = (Residual(evaluations=5).run([dataclasses.replace(observation, public=public)], stream(0, "a"))
                  for public in (PublicParameters(), PublicParameters(kept_share=1.0)))  # fmt: skip
    assert torch.equal(a.images, b.images)


def test_without_the_embedding_layer_the_blocks_give_the_timestep():
    """The layers that were sent are matched. If no layer with the time embedding was sent, the attack says so."""
    observation = SCENE.observe(Stacked((Withhold(layers="time_embedding"), PrivateTimestep())))
    (rebuilt,) = Residual(evaluations=5).run([observation], stream(0, "a"))
    assert rebuilt.diverged is None and rebuilt.timesteps.tolist() == [200]
    (lost,) = Residual(evaluations=5).run(
        [SCENE.observe(Stacked((Withhold(layers="time_emb"), PrivateTimestep())))], stream(0, "a")
    )
    assert "left the client" in lost.diverged


def test_excluded_timesteps_have_no_weight():
    observation = SCENE.observe(Stacked((TimestepRange(least=150), PrivateTimestep())))
    weights = equal_logits(observation).softmax(-1)[0]
    assert not weights[:150].any() and torch.allclose(weights[150:], torch.tensor(1 / 850))
    assert not equal_logits(SCENE.observe(NoDefense())).any() and EXCLUDED_LOGIT < 0
    (rebuilt,) = GIDMPlus(evaluations=6).run([observation], stream(0, "a"))
    assert rebuilt.timesteps is None or rebuilt.timesteps.min() >= 150


def test_private_draws_are_replaced_by_the_attackers_own_draws():
    observation = SCENE.observe(DPDM(draws=4, noise_multiplier=0, clip=1e9))
    attack = PosteriorMode(evaluations=8)
    informed, blind = (attack.run([view], stream(0, "a"))[0] for view in (observation, without(observation, "draws_per_image")))
    assert informed.diverged is None and not torch.equal(informed.images, blind.images)
    assert timesteps_of_draws(observation, 4).tolist() == [200] * 4, (
        "all draws of the toy have one timestep, and it can be read"
    )
    noisy = dataclasses.replace(SCENE.observe(DPDM(draws=4)), timesteps=None)
    assert timesteps_of_draws(noisy, 4).tolist() == [125, 375, 625, 875]


def test_a_broken_update_of_several_draws_diverges_alone():
    good = SCENE.observe(DPDM(draws=2))
    bad = dataclasses.replace(good, update={name: torch.full_like(value, math.nan) for name, value in good.update.items()})
    lost, rebuilt = PosteriorMode(evaluations=3).run([bad, good], stream(0, "a"))
    assert lost.diverged is not None and rebuilt.diverged is None


def without(observation, field):
    return dataclasses.replace(observation, public=dataclasses.replace(observation.public, **{field: None}))


USES = [
    (Residual(evaluations=4), GradientPruning(keep=0.1), "kept_share"),
    (Residual(evaluations=4), Clipping(clip=1e-3), "update_clip_norm"),
    (Residual(evaluations=4), PercentilePrivacy(percentile=0, gamma=1e-5), "coordinate_limit"),
    (Residual(evaluations=4), SVTPrivacy(gamma=1e-2), "laplace_std"),
    (Residual(evaluations=4), DPSGD(clip=1e-3), "clip_norm"),
    (Residual(evaluations=4), Quantisation(bits=2), "bits"),
    (Residual(evaluations=4), LaplaceNoise(ratio=1.0), "laplace_ratio"),
    (Residual(evaluations=4), Stacked((GaussianNoise(ratio=0.003), PrivateTimestep())), "gaussian_ratio"),
    (PosteriorMode(evaluations=8), DPSGD(), "noise_std"),
    (PosteriorMode(evaluations=8), GaussianNoise(), "gaussian_ratio"),
    (PosteriorMode(evaluations=8), DPDM(draws=3), "draws_per_image"),
    (GIDMPlus(evaluations=4), Stacked((TimestepRange(least=150), PrivateTimestep())), "least_timestep"),
]


@pytest.mark.parametrize(("attack", "defense", "field"), USES)
def test_an_attack_uses_the_public_parameters_that_it_declares(attack, defense, field):
    """Without the parameter, the same search gives other images."""
    assert field in attack.adapts_to
    observation = SCENE.observe(defense)
    informed, blind = (attack.run([view], stream(0, "a"))[0] for view in (observation, without(observation, field)))
    assert not torch.equal(informed.images, blind.images)


def test_aggregated_clients_disclose_no_parameters_of_their_own_updates():
    scene = toy(batch=1, clients=3)
    for defense in (
        Clipping(),
        GradientPruning(),
        Quantisation(),
        GaussianNoise(),
        LaplaceNoise(),
        PercentilePrivacy(),
        SVTPrivacy(),
    ):
        assert not scene.observe(defense).public.disclosed


def test_every_public_parameter_is_used_by_an_included_attack():
    """By an attack that the test above checks, or by the engine for all attacks."""
    shown = {field for _, _, field in USES}
    names = {field.name for field in dataclasses.fields(PublicParameters)}
    assert shown == names - PublicParameters.used_by(User.ENGINE, User.LABEL)


def test_the_clip_of_gradients_is_not_applied_to_several_steps_of_adam():
    """The engine follows the steps to their update, which is no sum of clipped gradients."""
    adam, sgd = (toy(local_steps=2, optimiser=name).observe(DPSGD(noise_multiplier=0.1)) for name in ("adam", "sgd"))
    assert comparable(adam).clip_norm is None and comparable(sgd) == sgd.public
    assert comparable(dataclasses.replace(adam, local_steps=1)).clip_norm == 1.0
