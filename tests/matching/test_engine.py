"""What a search comes back with, alone and among others, and what it leaves alone."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import nn

from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Mixture
from benchmark.evaluation.metrics import psnr
from benchmark.matching.adam import adam
from benchmark.matching.engine import Matching, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import Backend, clean_guess
from benchmark.matching.search import Searches
from tests.matching.clients import clients, observations, points, tasks


def test_the_attacked_network_stays_as_it_was():
    seen = observations(2)
    network = seen[0].network
    before = copy.deepcopy(network.state_dict())
    match(tasks(seen, 5), clean_guess, squared_distance, lbfgs)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_an_image_is_found_together_as_exactly_as_one_by_one():
    """Float32 accuracy is kept; tests/perf/test_accuracy.py has the same at 80 dB on a preset."""
    victims, seen = clients(2)
    truth = [victim.images[0] for victim in victims]
    together = match(tasks(seen, 100), clean_guess, squared_distance, lbfgs)
    some = tasks(seen, 100)
    plain = Matching(some, clean_guess, squared_distance)
    plain.updates.backend = Backend.LOOP
    alone = Searches(plain, points(some), [100] * 2)
    lbfgs(alone)
    for place in range(2):
        own = psnr(alone.best[place].view(3, 8, 8).clamp(-1, 1), truth[place])
        other = psnr(together[place].variables["x_0"][0].clamp(-1, 1), truth[place])
        assert own > 40 and other > own - 10


def test_victims_of_different_kinds_come_back_in_their_order():
    """Other batch sizes, networks and start variables are evaluated apart."""
    one, two = observations(2), observations(1, batch=2)
    other = observations(1, network=copy.deepcopy(one[0].network))
    some = [tasks(two)[0], *tasks(one), tasks(other)[0]]
    some = [dataclasses.replace(task, evaluations=4) for task in some]
    found = match(some, clean_guess, squared_distance, lbfgs)
    for task, solution in zip(some, found, strict=True):
        (alone,) = match([task], clean_guess, squared_distance, lbfgs)
        assert solution.variables["x_0"].shape == task.start["x_0"].shape
        assert solution.loss == pytest.approx(alone.loss, rel=1e-3)


def test_one_update_that_cannot_be_matched_is_told_while_the_others_go_on():
    seen = observations(5)
    spoilt = [
        dataclasses.replace(seen[0], update={n: v * math.nan for n, v in seen[0].update.items()}),
        dataclasses.replace(seen[1], update={n: v * 0 for n, v in seen[1].update.items()}),
        dataclasses.replace(seen[2], update={"unknown": next(iter(seen[2].update.values()))}),
        dataclasses.replace(seen[3], update={n: v[None] for n, v in seen[3].update.items()}),
        seen[4],
    ]
    found = match(tasks(spoilt, 6), clean_guess, squared_distance, lbfgs)
    for solution, reason in zip(found, ["not finite", "zero everywhere", "which the network lacks", "shape"], strict=False):
        assert reason in solution.diverged and solution.evaluations == 0
    (alone,) = match(tasks(spoilt, 6)[4:], clean_guess, squared_distance, lbfgs)
    assert found[4].diverged is None and found[4].loss == pytest.approx(alone.loss, rel=1e-4)


def test_a_start_that_is_not_finite_diverges_alone():
    some = tasks(observations(3), 6)
    some[1] = dataclasses.replace(some[1], start={"x_0": some[1].start["x_0"] * math.nan})
    found = match(some, clean_guess, squared_distance, partial(adam, lr=0.05))
    assert [s.diverged for s in found] == [None, "the matching loss was never finite", None]
    assert [s.evaluations for s in found] == [6, 1, 6]


@pytest.mark.parametrize("optimise", [lbfgs, partial(adam, lr=0.05)])
def test_a_cost_whose_gradient_is_not_finite_has_diverged(optimise):
    some = tasks(observations(2), 6)

    def torn(variables):
        """Finite everywhere, without a derivative at the start of one."""
        apart = variables["x_0"] - some[0].start["x_0"]
        return apart.flatten(1).square().sum(1).sqrt()

    found = match(some, clean_guess, squared_distance, optimise, torn)
    assert [solution.diverged for solution in found] == ["the matching loss was never finite", None]


def test_budgets_of_nothing_spend_nothing():
    for optimise in (lbfgs, partial(adam, lr=0.1)):
        (found,) = match(tasks(observations(1), 0), clean_guess, squared_distance, optimise)
        assert found.evaluations == 0 and found.diverged is None


def test_the_denoiser_is_a_function_of_its_own_thread():
    """Relaxed timesteps of one pass are not those of another one."""
    from concurrent.futures import ThreadPoolExecutor

    network: Denoiser = toy().network
    x = torch.randn(1, 3, 8, 8, generator=stream(0, "x"))
    weights = [Mixture(nn.functional.one_hot(torch.tensor([t]), 1000).float()) for t in range(0, 960, 60)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        alone = [network(x, t) for t in weights]
        for one, other in zip(alone, pool.map(lambda t: network(x, t).detach(), weights * 3), strict=False):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
