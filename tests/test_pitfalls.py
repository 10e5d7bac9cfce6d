"""Known mistakes in gradient inversion, each found in a public repository. Each is tested here or in the file named below.

PSNR's peak, clipping, LPIPS' range, the cap: test_metrics. The direction of the assignment, metrics on a latent: test_judge.
Best restart and best iterate by the attack's own loss: test_search. Private noise in a start value: test_knowledge_wall.
Evaluation mode: test_federation. Failed trials in means: test_leaderboard.
"""

import torch

from benchmark.attacks import gidm
from benchmark.attacks.gidm import GIDM
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense
from benchmark.evaluation.judge import judge
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.matching.engine import match
from benchmark.matching.objectives import cosine_distance, squared_distance
from benchmark.matching.problem import Backend, CleanGuess, Updates
from benchmark.registry import Registry
from tests.scenes import oracle, play


def test_client_and_attacker_scale_the_loss_and_the_images_alike(scene):
    observation = scene.observe(PlainDefense())
    victim = scene.victim
    guess = CleanGuess(victim.images[None], observation.timesteps[None], observation.noise[None])
    update = {name: value.detach() for name, value in Updates(observation, Backend.LOOP)(guess).items()}
    whole = {name: value[None] for name, value in observation.update.items()}
    for name, value in whole.items():
        torch.testing.assert_close(update[name], value, atol=1e-6, rtol=1e-4)
    assert float(squared_distance(update, whole).detach()) < 1e-10
    assert abs(float(cosine_distance(update, whole).detach())) < 1e-6


def test_both_phases_of_an_attack_match_the_same_update(scene, monkeypatch):
    """Phase 2 gets the observation of phase 1, not one with other images, timesteps or noise."""
    matched = []

    def watched(tasks, *more):
        matched.append(tasks[0].observation)
        return match(tasks, *more)

    monkeypatch.setattr(gidm, "match", watched)
    observation = scene.observe(PlainDefense())
    GIDM(evaluations=4, latent_share=0.5, sampler_steps=2).run([observation], stream(0, "attack"))
    first, second = matched
    for phase in (first, second):
        assert all(torch.equal(phase.update[name], value) for name, value in observation.update.items())
        assert torch.equal(phase.timesteps, observation.timesteps) and torch.equal(phase.noise, observation.noise)


def test_a_cell_has_the_same_victims_and_updates_each_time():
    """Attacks of several cells, or of one cell that runs again, are compared on the same images."""
    grid = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), victims=1)
    cell = plan(grid, Registry(), "cpu")[0]
    (first, observed), (second, again) = play(cell), play(cell)
    assert torch.equal(first[0].images, second[0].images)
    assert all(torch.equal(value, again[0].update[name]) for name, value in observed[0].update.items())


def test_client_and_judge_normalise_images_alike(scene):
    assert [sample.measured["psnr"] for sample in judge([scene.victim], oracle([scene.victim]), 30)] == [100.0, 100.0]


def test_a_private_timestep_is_absent_from_the_observation():
    grid = Grid("t", ("photos",), ("tiny",), ("private_timestep",), ("dlg",), victims=1)
    _, observations = play(plan(grid, Registry(), "cpu")[0])
    assert observations[0].timesteps is None
