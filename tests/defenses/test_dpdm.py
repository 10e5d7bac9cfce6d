import math

import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.dpdm import DPDM
from benchmark.diffusion.loss import parameter_gradient
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.plugins import ClientStep
from benchmark.registry import Registry
from benchmark.scenario import Scenario
from benchmark.vectors import norm
from tests.scenes import run_cell


def uniform_step(least=0):
    """Return a client's step with two images whose timesteps are uniform from `least` on."""
    scene = toy(batch=2)
    practice = Scenario(batch_size=2)
    return ClientStep(scene.network, scene.schedule, scene.victim, practice, least)


def distance(a, b):
    return norm({name: a[name] - b[name] for name in b})


def test_each_images_gradient_is_averaged_over_its_draws_and_then_clipped():
    step, draws = uniform_step(), 3
    again = step.redrawn(draws, stream(0, "d")).victim
    each = []
    for image in range(2):
        places = slice(image * draws, (image + 1) * draws)
        some = ClientStep(
            step.network,
            step.schedule,
            type(again)(again.images[places], again.timesteps[places], again.noise[places], again.sources[places]),
            step.scenario,
        )
        each.append(parameter_gradient(step.network, some.loss(step.network)))
    clip = 0.5 * min(map(norm, each))
    expected = {name: torch.stack([g[name] * min(1.0, clip / norm(g)) for g in each]).sum(0) / 2 for name in each[0]}
    actual = DPDM(draws=draws, noise_multiplier=0, clip=clip).gradient(step, stream(0, "d"))
    assert distance(actual, expected) < 1e-4 * norm(expected)


def test_draws_are_fresh_in_noise_and_timestep_of_the_same_images():
    step = uniform_step()
    again = step.redrawn(4, stream(0, "d")).victim
    assert torch.equal(again.images, step.victim.images.repeat_interleave(4, dim=0))
    assert len(set(again.timesteps.tolist())) > 4
    assert len({float(noise.sum()) for noise in again.noise}) == 8


def test_a_fixed_timestep_stays_fixed():
    assert set(toy().step().redrawn(3, stream(0, "d")).victim.timesteps.tolist()) == {200}


def test_draws_stay_in_the_range_of_timesteps():
    again = uniform_step(least=900).redrawn(20, stream(0, "d")).victim
    assert again.timesteps.min() >= 900


def test_more_draws_vary_less():
    def deviation(draws):
        updates = [
            DPDM(draws=draws, noise_multiplier=0, clip=1e9).gradient(uniform_step(), stream(seed, "d")) for seed in range(6)
        ]
        mean = {name: sum(update[name] for update in updates) / 6 for name in updates[0]}
        return sum(distance(update, mean) for update in updates)

    assert deviation(16) < 0.7 * deviation(1)


def test_noise_and_guarantee_are_those_of_dp_sgd():
    practice = Scenario(batch_size=4)
    assert DPDM().privacy(practice) == DPSGD().privacy(practice)
    assert DPDM(clip=2.0).public(practice).noise_std == DPSGD(clip=2.0).public(practice).noise_std == 0.5
    quiet, noisy = (DPDM(noise_multiplier=sigma, clip=0.5).gradient(uniform_step(), stream(0, "d")) for sigma in (0, 3.0))
    noise = torch.cat([(noisy[name] - quiet[name]).flatten() for name in quiet])
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 2, rel=0.05)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(noise.numel())


def test_zero_draws_are_refused():
    with pytest.raises(ValueError, match="draws must be from 1 to"):
        DPDM(draws=0)


def test_no_error_of_timestep_or_noise_is_reported_for_several_draws():
    grid = Grid("t", ("photos",), ("tiny",), ("dpdm[draws=1,noise_multiplier=0]",), ("residual",), victims=1, evaluations=2)
    (cell,) = (cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label == "residual")
    (sample,) = run_cell(cell).samples
    assert sample.status == "ok" and sample.timestep_error is None and sample.noise_mse is None
