"""What an attacker who knows the defense compares."""

import dataclasses

import pytest
import torch
from benchmark.attacks.dlg import DLG
from benchmark.attacks.gidm_plus import OUT, GIDMPlus, _equal
from benchmark.attacks.posterior_mode import PosteriorMode
from benchmark.attacks.residual import Residual
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.dpdm import DPDM
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.laplace_noise import LaplaceNoise
from benchmark.defenses.none import NoDefense
from benchmark.defenses.private_timestep import PrivateTimestep
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.defenses.timestep_range import TimestepRange
from benchmark.defenses.withhold import Withhold

from benchmark.contract import toy
from benchmark.matching.adapted import USED, distance, likelihood
from benchmark.matching.objectives import laplace_distance, outside_cells, relative_noise, squared_distance
from benchmark.metrics import psnr
from benchmark.scenario import Scenario
from benchmark.seeds import stream
from benchmark.stack import Stack
from benchmark.types import PublicParameters

SCENE = toy(batch=1)
UPDATE = {name: value[None] for name, value in SCENE.step().gradient().items()}

LOSSY = [
    GradientPruning(keep=0.1),
    RandomPruning(keep=0.1),
    Quantisation(bits=1),
    Quantisation(bits=4),
    Clipping(clip=1e-3),
    Stack((Clipping(clip=1e-3), GradientPruning(keep=0.1))),
]


@pytest.mark.parametrize("defense", LOSSY)
def test_the_truth_has_no_distance_to_what_a_known_defense_made_of_it(defense):
    """To the plain distance it has one."""
    released = {name: value[None] for name, value in SCENE.observe(defense).update.items()}
    scale = float(squared_distance(UPDATE, {name: torch.zeros_like(value) for name, value in UPDATE.items()}))
    assert float(squared_distance(UPDATE, released)) > 1e-4 * scale
    assert float(distance(defense.public(Scenario()))(UPDATE, released)) < 1e-7 * scale


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
    cells = outside_cells(2)
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


def test_a_likelihood_trusts_the_update_as_much_as_its_noise_allows():
    other = {name: 1.1 * value for name, value in UPDATE.items()}
    plain = float(squared_distance(other, UPDATE))
    assert float(likelihood(PublicParameters(noise_std=0.5))(other, UPDATE)) == pytest.approx(plain / (2 * 0.25))
    strong, weak = (float(likelihood(PublicParameters(gaussian_ratio=r))(other, UPDATE)) for r in (0.1, 10.0))
    assert strong > weak
    strong, weak = (float(likelihood(PublicParameters(laplace_ratio=r))(other, UPDATE)) for r in (0.1, 10.0))
    assert strong > weak


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
    assert not Residual.adapts_to & NoDefense().public(Scenario()).disclosed


def test_a_withheld_embedding_is_read_from_the_blocks_and_the_rest_is_matched():
    seen = SCENE.observe(Stack((Withhold(layers="time_embedding"), PrivateTimestep())))
    (found,) = Residual(evaluations=5).run([seen], stream(0, "a"))
    assert found.diverged is None and found.timesteps.tolist() == [200]
    (lost,) = Residual(evaluations=5).run(
        [SCENE.observe(Stack((Withhold(layers="time_emb"), PrivateTimestep())))], stream(0, "a")
    )
    assert "withheld" in lost.diverged


def test_timesteps_that_no_client_trains_on_have_no_weight():
    seen = SCENE.observe(Stack((TimestepRange(least=150), PrivateTimestep())))
    weights = _equal(seen).softmax(-1)[0]
    assert not weights[:150].any() and torch.allclose(weights[150:], torch.tensor(1 / 850))
    assert not _equal(SCENE.observe(NoDefense())).any() and OUT < 0
    (found,) = GIDMPlus(evaluations=6).run([seen], stream(0, "a"))
    assert found.timesteps is None or found.timesteps.min() >= 150


def test_private_draws_are_met_with_draws_of_the_attack_s_own():
    seen = SCENE.observe(DPDM(draws=4, noise_multiplier=0, clip=1e9))
    (found,) = PosteriorMode(evaluations=6).run([seen], stream(0, "a"))
    assert found.diverged is None and found.images.shape == (1, 3, 8, 8)
    (plain,) = DLG(evaluations=6).run([seen], stream(0, "a"))
    assert plain.diverged is not None or plain.timesteps is not None


def test_every_public_parameter_is_used_by_an_attack_that_ships():
    used = Residual.adapts_to | PosteriorMode.adapts_to | GIDMPlus.adapts_to | {"disclosed_noise_error"}
    assert {field.name for field in dataclasses.fields(PublicParameters)} == used and used > USED
