"""The whitened distance, and the attack that searches with it."""

import dataclasses
import math

import pytest
import torch

from benchmark.attacks._fields import CONTRAST
from benchmark.attacks._whitening import PLACES, NothingToCompare, gram, inverse_root, layer_factors, whitened_distance
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
from benchmark.types import Observation, PublicParameters, Reconstruction, Update

SCENE = toy(batch=2)
OBSERVATION = SCENE.observe(PlainDefense())
GUESS = SCENE.victim.images * 0.5
GUESSES = GUESS[None]
SHORT = {"stage": 6, "guesses": 2}
"""A first stage of 6 evaluations, and two guesses for each stage: a later stage needs room for 4 evaluations."""


def update_of(observation: Observation, images: torch.Tensor) -> Update:
    loss = training_loss(observation.network, observation.schedule, images, observation.timesteps, observation.noise)
    return {name: value[None] for name, value in parameter_gradient(observation.network, loss).items()}


def stacked(observation: Observation) -> Update:
    return {name: value[None] for name, value in observation.update.items()}


def rebuilt(attack: Whitened, observation: Observation) -> Reconstruction:
    (reconstruction,) = attack.run([observation], stream(0, "attack"))
    return reconstruction


def test_a_layers_gradient_is_the_sum_over_its_places():
    """G = sum_p d_p a_p^T for every kind of layer, compared with autograd. The factors are computed from d and a."""
    network, passed, handles = OBSERVATION.network, {}, []
    for name, layer in network.named_modules():
        if type(layer) in PLACES and "time_emb" not in name:

            def keep(layer, inputs, output, name=name):
                output.retain_grad()
                passed[name] = (layer, inputs[0], output)

            handles.append(layer.register_forward_hook(keep))
    try:
        loss = training_loss(network, OBSERVATION.schedule, GUESS, OBSERVATION.timesteps, OBSERVATION.noise)
        loss.backward()
        assert {type(layer) for layer, _, _ in passed.values()} == set(PLACES)
        for name, (layer, inputs, output) in passed.items():
            a, d = PLACES[type(layer)](layer, inputs.detach(), output.grad)
            gradient = a.sum(0) if isinstance(layer, torch.nn.GroupNorm) else (d.mT @ a).view_as(layer.weight)
            torch.testing.assert_close(gradient, layer.weight.grad, rtol=1e-3, atol=1e-6, msg=name)
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad(set_to_none=True)


def test_factors_whiten_the_vectors_that_they_were_computed_from():
    """With negligible damping, E[v v^T] of the whitened vectors is a multiple of the identity."""
    rows = torch.randn(500, 6, generator=stream(0, "rows")) @ torch.randn(6, 6, generator=stream(0, "mix"))
    white = rows @ inverse_root(gram(rows), 1e-12)
    covariance = white.mT @ white
    torch.testing.assert_close(covariance / covariance.diagonal().mean(), torch.eye(6), atol=1e-3, rtol=0)


def test_distance_is_one_at_the_guess_and_zero_at_the_truth():
    distance = whitened_distance(OBSERVATION, GUESSES, 1e-3)
    assert float(distance(update_of(OBSERVATION, GUESS), stacked(OBSERVATION))) == pytest.approx(1, rel=1e-3)
    assert float(distance(update_of(OBSERVATION, SCENE.victim.images), stacked(OBSERVATION))) < 1e-6


def test_each_layer_has_a_share_by_its_size_at_the_guess():
    """If one layer's update is right, the distance falls by that layer's share and by nothing else."""
    distance, own, observed = whitened_distance(OBSERVATION, GUESSES, 1e-3), update_of(OBSERVATION, GUESS), stacked(OBSERVATION)
    name = "unet.conv_out"
    righted = {key: observed[key] if key.startswith(f"{name}.") else value for key, value in own.items()}
    sizes = {layer.names[0]: len(layer.left) * len(layer.right) for layer in layer_factors(OBSERVATION, GUESSES, 1e-3)}
    share = sizes[f"{name}.weight"] / sum(sizes.values())
    assert float(distance(own, observed) - distance(righted, observed)) == pytest.approx(share, rel=1e-2)


def test_pruned_coordinates_are_not_compared():
    observation = SCENE.observe(GradientPruning(keep=0.3))
    distance = whitened_distance(observation, GUESSES, 1e-3)
    assert float(distance(update_of(OBSERVATION, SCENE.victim.images), stacked(observation))) < 1e-6
    assert float(distance(update_of(OBSERVATION, GUESS), stacked(observation))) == pytest.approx(1, rel=1e-3)


def test_the_update_of_a_guess_is_clipped_like_the_clients():
    """The clip is far below the update's norm. Without clipping the guess, the distance at the truth would not be zero."""
    observation = SCENE.observe(Clipping(clip=1e-3))
    distance = whitened_distance(observation, GUESSES, 1e-3)
    assert float(distance(update_of(OBSERVATION, SCENE.victim.images), stacked(observation))) < 1e-6
    assert float(distance(update_of(OBSERVATION, GUESS), stacked(observation))) == pytest.approx(1, rel=1e-3)


def test_a_withheld_layer_is_left_out():
    kept = {name: value for name, value in OBSERVATION.update.items() if "conv_in" not in name}
    distance = whitened_distance(dataclasses.replace(OBSERVATION, update=kept), GUESSES, 1e-3)
    own = {name: value for name, value in update_of(OBSERVATION, GUESS).items() if name in kept}
    assert float(distance(own, {name: value[None] for name, value in kept.items()})) == pytest.approx(1, rel=1e-3)


def test_tasks_with_their_own_distances_are_searched_as_if_alone():
    """One task has its own distance, the other uses the common one. Each gives the same result as in a call of its own."""
    own = whitened_distance(OBSERVATION, GUESSES, 1e-3)
    tasks = [Task(OBSERVATION, {"x_0": GUESS}, 8, own), Task(OBSERVATION, {"x_0": GUESS}, 8)]
    mixed = match(tasks, clean_guess, squared_distance, lbfgs)
    plain = [dataclasses.replace(task, distance=None) for task in tasks]
    for solution, distance in zip(mixed, (own, squared_distance), strict=True):
        alone = match([plain[0]], clean_guess, distance, lbfgs)[0]
        assert solution.loss == pytest.approx(alone.loss, rel=1e-2)


def test_it_recovers_a_photograph_long_before_the_squared_distance_does():
    """The image is larger than the model's own, so that no layer has as few positions as channels.

    This is one photograph; no other one was tried at this size.
    """
    model = resolve_model(parse_one("tiny:trained"))
    network, schedule, scenario, draw = build_network(model, 0), build_process(model), Scenario(timesteps=200), stream(0, "t")
    victim = draw_victim(Photos().victims(2, 24, draw)[1:], scenario, schedule, draw)
    knowledge = AttackerKnowledge(network, torch.zeros(3), PublicParameters())
    observation = observe(Round(network, schedule, victim, scenario), PlainDefense(), knowledge, draw, draw)
    reconstruction = rebuilt(Whitened(evaluations=60, stage=60), observation)
    start = {"x_0": mean_colour_start(observation)}
    (plain,) = match([Task(observation, start, 60)], clean_guess, squared_distance, lbfgs)
    reached, rival = (psnr(i[0].clamp(-1, 1), victim.images[0]) for i in (reconstruction.images, plain.variables["x_0"]))
    assert reached > 30 > rival + 5
    assert reconstruction.evaluations <= 60


@pytest.mark.parametrize("practice", [{"local_steps": 2, "local_lr": 0.1, "clients": 2}, {"clients": 2}])
def test_distance_is_one_at_the_guess_for_aggregated_and_local_training(practice):
    scene = toy(batch=1, **practice)
    observation = scene.observe(PlainDefense())
    guess = scene.victim.images * 0.9
    distance, known = whitened_distance(observation, guess[None], 1e-3), stack([observation])
    update = Updates(observation, choose_backend(observation))(clean_guess({"x_0": guess[None]}, known))
    assert float(distance(update, known.update).detach()) == pytest.approx(1, rel=1e-3)


def test_a_stage_that_cannot_begin_keeps_the_images_before_it(monkeypatch):
    made = []

    def once(*arguments):
        if made:
            raise NothingToCompare("no more")
        made.append(whitened_distance(*arguments))
        return made[0]

    alone = rebuilt(Whitened(evaluations=6, **SHORT), OBSERVATION)
    monkeypatch.setattr("benchmark.attacks.whitened.whitened_distance", once)
    kept = rebuilt(Whitened(evaluations=12, **SHORT), OBSERVATION)
    assert kept.diverged is None
    assert kept.note == "ended early: no more"
    assert torch.equal(kept.images, alone.images)
    assert kept.evaluations == alone.evaluations + 2  # the guesses of the second stage


@pytest.mark.parametrize(("evaluations", "spent"), [(3, 3), (5, 5), (6, 6), (8, 6), (9, 6), (10, 10), (11, 11), (30, 30)])
def test_stages_stay_within_the_budget_and_always_search(evaluations, spent):
    """The first stage takes 6. A further stage needs room for its two guesses and two evaluations."""
    reconstruction = rebuilt(Whitened(evaluations=evaluations, **SHORT), OBSERVATION)
    assert reconstruction.evaluations == spent
    assert math.isfinite(reconstruction.loss)
    assert not torch.equal(reconstruction.images, mean_colour_start(OBSERVATION))
    assert reconstruction.diverged is None
    assert not reconstruction.note


@pytest.mark.parametrize("finished", [0, 1])
def test_a_stage_that_diverges_ends_the_search_and_keeps_earlier_images(monkeypatch, finished):
    """If the first stage diverges there is nothing to keep, and the images mean nothing."""
    stages = []

    def diverges(tasks, *rest):
        if tasks:
            stages.append(tasks)
        if len(stages) <= finished:
            return match(tasks, *rest)
        return [Solution({"x_0": task.start["x_0"] + 1}, math.inf, 3, "no loss was finite") for task in tasks]

    before = rebuilt(Whitened(evaluations=6, **SHORT), OBSERVATION)
    monkeypatch.setattr("benchmark.attacks.whitened.match", diverges)
    after = rebuilt(Whitened(evaluations=40, **SHORT), OBSERVATION)
    assert len(stages) == finished + 1
    assert after.evaluations == finished * before.evaluations + 2 + 3
    assert after.diverged == (None if finished else "no loss was finite")
    assert after.note == ("ended early: no loss was finite" if finished else "")
    assert torch.equal(after.images, before.images if finished else mean_colour_start(OBSERVATION))
    assert after.loss == (before.loss if finished else math.inf)


def test_every_victim_gets_its_own_images():
    """Two victims have opposite images. The one between them has no layer to compare."""
    bare = dataclasses.replace(
        OBSERVATION, update={name: g for name, g in OBSERVATION.update.items() if name.endswith(".bias")}
    )
    other = dataclasses.replace(SCENE, victim=dataclasses.replace(SCENE.victim, images=-SCENE.victim.images))
    attack = Whitened(evaluations=50)
    first, lost, last = attack.run([OBSERVATION, bare, other.observe(PlainDefense())], stream(0, "attack"))
    errors = [
        float((own.images - sign * SCENE.victim.images).square().mean() / SCENE.victim.images.square().mean())
        for own, sign in ((first, 1), (last, -1))
    ]
    assert max(errors) < 0.5
    assert first.diverged is None
    assert "no layer" in lost.diverged
    assert last.diverged is None


def test_the_default_budget_fills_its_stages(monkeypatch):
    """The stages have 50, 50, 100, 200 and 400 evaluations, guesses included, as `results/attacks/log.md` says."""
    budgets = []

    def spends_all(tasks, *rest):
        budgets.extend(task.evaluations for task in tasks)
        return [Solution(task.start, 1.0, task.evaluations) for task in tasks]

    monkeypatch.setattr("benchmark.attacks.whitened.match", spends_all)
    monkeypatch.setattr("benchmark.attacks.whitened.whitened_distance", lambda *arguments: squared_distance)
    assert rebuilt(Whitened(), OBSERVATION).evaluations == 800
    assert budgets == [50 - 8, 50 - 8, 100 - 8, 200 - 8, 400 - 8]


def test_a_stage_starts_where_the_one_before_it_ended(monkeypatch):
    """The first starts at one colour. Each distance is made for the guesses around its start, with weaker fields later.

    No stage after the first is longer than all stages before it together.
    """
    started, ended, guessed = [], [], []

    def shortened(tasks, *rest):
        """Spend two evaluations and report the whole budget."""
        solutions = match([dataclasses.replace(task, evaluations=2) for task in tasks], *rest)
        if tasks:
            started.append(tasks[0])
            ended.append(dataclasses.replace(solutions[0], evaluations=tasks[0].evaluations))
        return ended[-1:] if tasks else []

    def noted(observation, guesses, damping):
        guessed.append(guesses)
        return whitened_distance(observation, guesses, damping)

    monkeypatch.setattr("benchmark.attacks.whitened.match", shortened)
    monkeypatch.setattr("benchmark.attacks.whitened.whitened_distance", noted)
    attack = Whitened(evaluations=80, stage=10)
    rebuilt(attack, OBSERVATION)
    lengths = [task.evaluations + attack.guesses for task in started]
    assert lengths == [10, 10, 20, 40]
    starts = [task.start["x_0"] for task in started]
    assert torch.equal(starts[0], mean_colour_start(OBSERVATION))
    for start, solution in zip(starts[1:], ended, strict=False):
        assert torch.equal(start, solution.variables["x_0"])
    for start, guesses, spread in zip(starts, guessed, SPREADS, strict=False):
        assert guesses.shape == (8, *start.shape)
        contrasts = (guesses - start).square().mean((1, 2, 3, 4)).sqrt() / CONTRAST
        assert float(contrasts.log().mean().exp()) == pytest.approx(spread, rel=0.4)


def test_the_mean_distance_over_several_guesses_is_one():
    guesses = torch.stack([GUESS, -GUESS, 0.1 * GUESS])
    distance = whitened_distance(OBSERVATION, guesses, 1e-3)
    each = [float(distance(update_of(OBSERVATION, guess), stacked(OBSERVATION))) for guess in guesses]
    assert sum(each) / 3 == pytest.approx(1, rel=1e-3)
    assert float(distance(update_of(OBSERVATION, SCENE.victim.images), stacked(OBSERVATION))) < 1e-6


def test_small_derivatives_have_finite_factors():
    rows = torch.randn(50, 4, generator=stream(0, "rows"))
    torch.testing.assert_close(inverse_root(gram(rows * 1e-24), 1e-3), inverse_root(gram(rows), 1e-3), rtol=1e-3, atol=1e-3)


def test_a_covariance_without_decomposition_says_so():
    with pytest.raises(NothingToCompare, match="decomposed"):
        inverse_root(torch.full((4, 4), math.nan), 1e-3)


@pytest.mark.parametrize("wrong", [{"evaluations": 2}, {"stage": 9}, {"guesses": 0}, {"damping": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Whitened(**wrong)


def test_the_smallest_allowed_values_run():
    assert rebuilt(Whitened(evaluations=3, stage=3, guesses=1), OBSERVATION).evaluations == 3
