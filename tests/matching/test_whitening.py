"""The whitened distance and the attack that searches by it."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks._fields import CONTRAST
from benchmark.attacks._whitening import PLACES, NothingToCompare, _factors, _gram, _inverse_root, whitened_distance
from benchmark.attacks.whitened import SPREADS, Whitened
from benchmark.base.seeds import stream
from benchmark.base.spec import parse_one
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense, toy
from benchmark.datasets.photos import Photos
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.evaluation.metrics import psnr
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import Updates, choose_backend, clean_guess, mean_colour_start, stack
from benchmark.matching.search import Solution
from benchmark.scenario import Scenario
from benchmark.types import Observation, PublicParameters, Update

SCENE = toy(batch=2)
SEEN = SCENE.observe(PlainDefense())
GUESS = SCENE.victim.images * 0.5
GUESSES = GUESS[None]


def update_of(seen: Observation, images: torch.Tensor) -> Update:
    loss = training_loss(seen.network, seen.schedule, images, seen.timesteps, seen.noise)
    return {name: value[None] for name, value in parameter_gradient(seen.network, loss).items()}


def stacked(seen: Observation) -> Update:
    return {name: value[None] for name, value in seen.update.items()}


def test_a_layers_gradient_is_the_sum_over_its_places():
    """What the factors are made of: G = sum_p d_p a_p^T, for every kind of layer, against autograd."""
    network, met, handles = SEEN.network, {}, []
    for name, layer in network.named_modules():
        if type(layer) in PLACES and "time_emb" not in name:

            def keep(layer, inputs, output, name=name):
                output.retain_grad()
                met[name] = (layer, inputs[0], output)

            handles.append(layer.register_forward_hook(keep))
    try:
        loss = training_loss(network, SEEN.schedule, GUESS, SEEN.timesteps, SEEN.noise)
        loss.backward()
        assert {type(layer) for layer, _, _ in met.values()} == set(PLACES)
        for name, (layer, inputs, output) in met.items():
            a, d = PLACES[type(layer)](layer, inputs.detach(), output.grad)
            found = a.sum(0) if isinstance(layer, torch.nn.GroupNorm) else (d.mT @ a).view_as(layer.weight)
            torch.testing.assert_close(found, layer.weight.grad, rtol=1e-3, atol=1e-6, msg=name)
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad(set_to_none=True)


def test_its_factors_whiten_what_they_were_made_of():
    """E[v v^T] of whitened vectors is a multiple of the identity where the damping is nothing beside it."""
    rows = torch.randn(500, 6, generator=stream(0, "rows")) @ torch.randn(6, 6, generator=stream(0, "mix"))
    white = rows @ _inverse_root(_gram(rows), 1e-12)
    covariance = white.mT @ white
    torch.testing.assert_close(covariance / covariance.diagonal().mean(), torch.eye(6), atol=1e-3, rtol=0)


def test_it_is_one_at_the_guess_and_zero_at_the_truth():
    distance = whitened_distance(SEEN, GUESSES, 1e-3)
    assert float(distance(update_of(SEEN, GUESS), stacked(SEEN))) == pytest.approx(1, rel=1e-3)
    assert float(distance(update_of(SEEN, SCENE.victim.images), stacked(SEEN))) < 1e-6


def test_every_layer_counts_by_its_size_at_the_guess():
    """A layer that is right already takes its share, and nothing else changes."""
    distance, own, seen = whitened_distance(SEEN, GUESSES, 1e-3), update_of(SEEN, GUESS), stacked(SEEN)
    name = "unet.conv_out"
    righted = {key: seen[key] if key.startswith(f"{name}.") else value for key, value in own.items()}
    sizes = {layer.names[0]: len(layer.left) * len(layer.right) for layer in _factors(SEEN, GUESSES, 1e-3)}
    share = sizes[f"{name}.weight"] / sum(sizes.values())
    assert float(distance(own, seen) - distance(righted, seen)) == pytest.approx(share, rel=1e-2)


def test_what_was_pruned_is_not_compared():
    seen = SCENE.observe(GradientPruning(keep=0.3))
    distance = whitened_distance(seen, GUESSES, 1e-3)
    assert float(distance(update_of(SEEN, SCENE.victim.images), stacked(seen))) < 1e-6
    assert float(distance(update_of(SEEN, GUESS), stacked(seen))) == pytest.approx(1, rel=1e-3)


def test_what_was_clipped_is_clipped_in_the_guess_too():
    """A norm far below the update's: without the clip on the guess, the truth would not be at zero."""
    seen = SCENE.observe(Clipping(clip=1e-3))
    distance = whitened_distance(seen, GUESSES, 1e-3)
    assert float(distance(update_of(SEEN, SCENE.victim.images), stacked(seen))) < 1e-6
    assert float(distance(update_of(SEEN, GUESS), stacked(seen))) == pytest.approx(1, rel=1e-3)


def test_a_withheld_layer_is_left_out():
    kept = {name: value for name, value in SEEN.update.items() if "conv_in" not in name}
    distance = whitened_distance(dataclasses.replace(SEEN, update=kept), GUESSES, 1e-3)
    own = {name: value for name, value in update_of(SEEN, GUESS).items() if name in kept}
    assert float(distance(own, {name: value[None] for name, value in kept.items()})) == pytest.approx(1, rel=1e-3)


def test_tasks_with_distances_of_their_own_are_searched_as_if_alone():
    """Beside a task that has none: each comes out as it does with that distance for all."""
    own = whitened_distance(SEEN, GUESSES, 1e-3)
    tasks = [Task(SEEN, {"x_0": GUESS}, 8, own), Task(SEEN, {"x_0": GUESS}, 8)]
    mixed = match(tasks, clean_guess, squared_distance, lbfgs)
    plain = [dataclasses.replace(task, distance=None) for task in tasks]
    for found, distance in zip(mixed, (own, squared_distance), strict=True):
        alone = match([plain[0]], clean_guess, distance, lbfgs)[0]
        assert found.loss == pytest.approx(alone.loss, rel=1e-2)


def test_it_finds_a_photograph_of_many_places_long_before_the_squared_distance_does():
    """Twice the model's own size a side, so that no layer has as few positions as channels.

    One of four photographs that were tried: with this budget the others came to 46, 36 and 10 dB.
    """
    model = resolve_model(parse_one("tiny:trained"))
    network, schedule, scenario, draw = build_network(model, 0), build_process(model), Scenario(timesteps=200), stream(0, "t")
    victim = draw_victim(Photos().victims(2, 32, draw)[1:], scenario, schedule, draw)
    seen = observe(
        Round(network, schedule, victim, scenario),
        PlainDefense(),
        AttackerKnowledge(network, torch.zeros(3), PublicParameters()),
        draw,
        draw,
    )
    (rebuilt,) = Whitened(evaluations=100).run([seen], draw)
    (plain,) = match([Task(seen, {"x_0": mean_colour_start(seen)}, 100)], clean_guess, squared_distance, lbfgs)
    found, rival = (psnr(images[0].clamp(-1, 1), victim.images[0]) for images in (rebuilt.images, plain.variables["x_0"]))
    assert found > 30 > rival + 5
    assert rebuilt.evaluations <= 100


@pytest.mark.parametrize("practice", [{"local_steps": 2, "local_lr": 0.1, "clients": 2}, {"clients": 2}])
def test_it_is_one_at_the_guess_of_what_the_search_compares(practice):
    scene = toy(batch=1, **practice)
    seen = scene.observe(PlainDefense())
    guess = scene.victim.images * 0.9
    distance, known = whitened_distance(seen, guess[None], 1e-3), stack([seen])
    update = Updates(seen, choose_backend(seen))(clean_guess({"x_0": guess[None]}, known))
    assert float(distance(update, known.update).detach()) == pytest.approx(1, rel=1e-3)


def test_a_stage_that_cannot_begin_keeps_what_came_before(monkeypatch):
    made = []

    def once(*asked):
        if made:
            raise NothingToCompare("no more")
        made.append(whitened_distance(*asked))
        return made[0]

    (alone,) = Whitened(evaluations=20, stage=20).run([SEEN], stream(0, "attack"))
    monkeypatch.setattr("benchmark.attacks.whitened.whitened_distance", once)
    (kept,) = Whitened(evaluations=40, stage=20).run([SEEN], stream(0, "attack"))
    assert kept.diverged is None
    assert kept.note == "ended early: no more"
    assert torch.equal(kept.images, alone.images)
    assert kept.evaluations == alone.evaluations + 8  # the guesses of the second


@pytest.mark.parametrize(("evaluations", "spent"), [(3, 3), (9, 9), (20, 20), (28, 20), (29, 20), (30, 30), (33, 33), (90, 90)])
def test_stages_stay_within_the_budget_and_always_search(evaluations, spent):
    """The first is of 20, then there must be room for 8 guesses and two evaluations."""
    (found,) = Whitened(evaluations=evaluations, stage=20).run([SEEN], stream(0, "attack"))
    assert found.evaluations == spent
    assert math.isfinite(found.loss)
    assert not torch.equal(found.images, mean_colour_start(SEEN))
    assert found.diverged is None
    assert not found.note


def test_the_default_budget_is_one_that_its_stages_fill():
    lengths = [Whitened.stage << max(0, number - 1) for number in range(5)]
    assert sum(lengths) == Whitened.evaluations


@pytest.mark.parametrize("finished", [0, 1])
def test_a_stage_that_diverges_is_the_end_and_keeps_what_came_before(monkeypatch, finished):
    """Where it is the first there is nothing to keep, and the images mean nothing."""
    stages = []

    def diverges(tasks, *rest):
        if tasks:
            stages.append(tasks)
        if len(stages) <= finished:
            return match(tasks, *rest)
        return [Solution({"x_0": task.start["x_0"] + 1}, math.inf, 3, "no loss was finite") for task in tasks]

    (before,) = Whitened(evaluations=20, stage=20).run([SEEN], stream(0, "attack"))
    monkeypatch.setattr("benchmark.attacks.whitened.match", diverges)
    (found,) = Whitened(evaluations=100, stage=20).run([SEEN], stream(0, "attack"))
    assert len(stages) == finished + 1
    assert found.evaluations == finished * before.evaluations + 8 + 3
    assert found.diverged == (None if finished else "no loss was finite")
    assert found.note == ("ended early: no loss was finite" if finished else "")
    assert torch.equal(found.images, before.images if finished else mean_colour_start(SEEN))
    assert found.loss == (before.loss if finished else math.inf)


def test_every_victim_gets_its_own():
    """Two victims of opposite images, and between them one that is lost."""
    bare = dataclasses.replace(SEEN, update={name: g for name, g in SEEN.update.items() if name.endswith(".bias")})
    other = dataclasses.replace(SCENE, victim=dataclasses.replace(SCENE.victim, images=-SCENE.victim.images))
    found = Whitened(evaluations=80, stage=20).run([SEEN, bare, other.observe(PlainDefense())], stream(0, "attack"))
    near = [
        float((own.images - sign * SCENE.victim.images).square().mean() / SCENE.victim.images.square().mean())
        for own, sign in ((found[0], 1), (found[2], -1))
    ]
    assert max(near) < 0.5
    assert found[0].diverged is None
    assert "no layer" in found[1].diverged
    assert found[2].diverged is None


def test_a_stage_begins_where_the_one_before_it_ended_and_is_as_long_as_all_of_them(monkeypatch):
    """The first at one colour; each with a distance made for eight fields around its start, weaker ones as it goes on."""
    asked, met, guessed = [], [], []

    def watched(tasks, *rest):
        found = match(tasks, *rest)
        if tasks:
            asked.append(tasks[0])
            met.append(found[0])
        return found

    def noted(seen, guesses, damping):
        guessed.append(guesses)
        return whitened_distance(seen, guesses, damping)

    monkeypatch.setattr("benchmark.attacks.whitened.match", watched)
    monkeypatch.setattr("benchmark.attacks.whitened.whitened_distance", noted)
    attack = Whitened(evaluations=80, stage=10)
    attack.run([SEEN], stream(0, "attack"))
    lengths = [task.evaluations + attack.guesses for task in asked]
    assert lengths == [10, 10, 20, 40]
    starts = [task.start["x_0"] for task in asked]
    assert torch.equal(starts[0], mean_colour_start(SEEN))
    for start, found in zip(starts[1:], met, strict=False):
        assert torch.equal(start, found.variables["x_0"])
    for start, guesses, spread in zip(starts, guessed, SPREADS, strict=False):
        assert guesses.shape == (8, *start.shape)
        contrasts = (guesses - start).square().mean((1, 2, 3, 4)).sqrt() / CONTRAST
        assert float(contrasts.log().mean().exp()) == pytest.approx(spread, rel=0.4)


def test_it_is_one_on_the_mean_over_several_guesses():
    guesses = torch.stack([GUESS, -GUESS, 0.1 * GUESS])
    distance = whitened_distance(SEEN, guesses, 1e-3)
    each = [float(distance(update_of(SEEN, guess), stacked(SEEN))) for guess in guesses]
    assert sum(each) / 3 == pytest.approx(1, rel=1e-3)
    assert float(distance(update_of(SEEN, SCENE.victim.images), stacked(SEEN))) < 1e-6


def test_small_derivatives_have_finite_factors():
    rows = torch.randn(50, 4, generator=stream(0, "rows"))
    torch.testing.assert_close(_inverse_root(_gram(rows * 1e-24), 1e-3), _inverse_root(_gram(rows), 1e-3), rtol=1e-3, atol=1e-3)


def test_a_covariance_without_decomposition_says_so():
    with pytest.raises(NothingToCompare, match="decomposed"):
        _inverse_root(torch.full((4, 4), math.nan), 1e-3)


@pytest.mark.parametrize("wrong", [{"evaluations": 2}, {"stage": 9}, {"guesses": 0}, {"damping": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Whitened(**wrong)


def test_the_least_values_are_taken():
    (found,) = Whitened(evaluations=3, stage=3, guesses=1).run([SEEN], stream(0, "attack"))
    assert found.evaluations == 3
