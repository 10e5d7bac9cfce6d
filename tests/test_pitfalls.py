"""Known ways to get gradient inversion wrong, each seen in a public repository, each pinned here or where it is named.

PSNR's peak, clipping, LPIPS' range, the cap: test_metrics. The direction of the assignment, metrics on a latent: test_judge.
Best restart and best iterate by the attack's own loss: test_search. Private noise in a start value: test_knowledge_wall.
Evaluation mode: test_federation. Failed trials in means: test_leaderboard.
"""

import torch

from benchmark.clients.toy import PlainDefense
from benchmark.evaluation.judge import judge
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.matching.objectives import cosine_distance, squared_distance
from benchmark.matching.problem import Backend, CleanGuess, Updates
from benchmark.registry import Registry
from tests.scenes import oracle, play


def test_client_and_attacker_scale_the_loss_and_the_images_alike(scene):
    seen = scene.observe(PlainDefense())
    victim = scene.victim
    guess = CleanGuess(victim.images[None], seen.timesteps[None], seen.noise[None])
    update = Updates(seen, Backend.LOOP)(guess)
    whole = {name: value[None] for name, value in seen.update.items()}
    for name, value in whole.items():
        torch.testing.assert_close(update[name], value, atol=1e-6, rtol=1e-4)
    assert float(squared_distance(update, whole)) < 1e-10
    assert abs(float(cosine_distance(update, whole))) < 1e-6


def test_two_stages_attack_one_victim():
    grid = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), victims=1)
    cell = plan(grid, Registry(), "cpu")[0]
    (first, seen), (second, again) = play(cell), play(cell)
    assert torch.equal(first[0].images, second[0].images)
    assert all(torch.equal(seen[0].update[name], again[0].update[name]) for name in seen[0].update)


def test_the_oracle_proves_that_client_and_judge_normalise_images_alike(scene):
    assert [sample.measured["psnr"] for sample in judge([scene.victim], oracle([scene.victim]), 30)] == [100.0, 100.0]


def test_a_private_timestep_is_not_there_to_be_fixed_at_the_truth():
    grid = Grid("t", ("photos",), ("tiny",), ("private_timestep",), ("dlg",), victims=1)
    _, observations = play(plan(grid, Registry(), "cpu")[0])
    assert observations[0].timesteps is None
