"""Tests of relaxed timesteps: weights over all timesteps, where all weight on one gives that timestep."""

import torch
from torch.nn.functional import one_hot

from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.process import Mixture


def test_a_corner_gives_the_gradient_of_the_whole_timestep(scene):
    victim = scene.victim
    corner = Mixture(one_hot(victim.timesteps, scene.schedule.steps).float())
    whole, relaxed = (
        parameter_gradient(scene.network, training_loss(scene.network, scene.schedule, victim.images, t, victim.noise))
        for t in (victim.timesteps, corner)
    )
    assert all(torch.allclose(whole[name], relaxed[name], atol=1e-6) for name in whole)


def test_the_network_forgets_the_mixture(scene):
    x, t = scene.victim.images, scene.victim.timesteps
    before = scene.network(x, t)
    scene.network(x, Mixture(torch.full((2, 1000), 1e-3)))
    assert torch.equal(scene.network(x, t), before)


def test_two_timesteps_mix_their_share_of_signal(scene):
    schedule = scene.schedule
    half = Mixture((one_hot(torch.tensor([10]), 1000) + one_hot(torch.tensor([600]), 1000)) / 2)
    mixed = schedule.add_noise(torch.ones(1, 3, 8, 8), half, torch.zeros(1, 3, 8, 8))
    expected = ((schedule.level[10] + schedule.level[600]) / 2).sqrt()
    assert torch.allclose(mixed, expected.expand_as(mixed))
