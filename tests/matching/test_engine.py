"""The results of searches, alone and together, and what a search must not change."""

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
from benchmark.matching.engine import Matching, Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import Backend, clean_guess
from benchmark.matching.search import Searches
from tests.matching.clients import clients, observations, points, tasks


def test_the_attacked_network_stays_as_it_was():
    observed = observations(2)
    network = observed[0].network
    before = copy.deepcopy(network.state_dict())
    match(tasks(observed, 5), clean_guess, squared_distance, lbfgs)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_an_image_is_found_together_as_exactly_as_one_by_one():
    """The batch keeps float32 accuracy. The searches start near the truth, which saves evaluations.

    tests/perf/test_accuracy.py checks the same on a preset, from N(0, 1) to 80 dB.
    """
    victims, observed = clients(2)
    truth = [victim.images[0] for victim in victims]
    draw = stream(2, "near")
    starts = [victim.images + 0.1 * torch.randn(victim.images.shape, generator=draw) for victim in victims]  # 26 dB
    some = [Task(o, {"x_0": x_0}, 60) for o, x_0 in zip(observed, starts, strict=True)]
    together = match(some, clean_guess, squared_distance, lbfgs)
    plain = Matching(some, clean_guess, squared_distance)
    plain.updates.backend = Backend.LOOP
    alone = Searches(plain, points(some), [60] * 2)
    lbfgs(alone)
    for place in range(2):
        own = psnr(alone.best[place].view(3, 8, 8).clamp(-1, 1), truth[place])
        other = psnr(together[place].variables["x_0"][0].clamp(-1, 1), truth[place])
        assert own > 40 and other > own - 10


def test_results_of_different_kinds_of_victims_keep_their_order():
    """Victims with another batch size or network are evaluated apart."""
    one, two = observations(2), observations(1, batch=2)
    other = observations(1, network=copy.deepcopy(one[0].network))
    some = [tasks(two)[0], *tasks(one), tasks(other)[0]]
    some = [dataclasses.replace(task, evaluations=4) for task in some]
    solutions = match(some, clean_guess, squared_distance, lbfgs)
    for task, solution in zip(some, solutions, strict=True):
        (alone,) = match([task], clean_guess, squared_distance, lbfgs)
        assert solution.variables["x_0"].shape == task.start["x_0"].shape
        assert solution.loss == pytest.approx(alone.loss, rel=1e-3)


def test_an_update_that_cannot_be_matched_leaves_the_others_alone():
    observed = observations(5)
    spoilt = [
        dataclasses.replace(observed[0], update={n: v * math.nan for n, v in observed[0].update.items()}),
        dataclasses.replace(observed[1], update={n: v * 0 for n, v in observed[1].update.items()}),
        dataclasses.replace(observed[2], update={"unknown": next(iter(observed[2].update.values()))}),
        dataclasses.replace(observed[3], update={n: v[None] for n, v in observed[3].update.items()}),
        observed[4],
    ]
    solutions = match(tasks(spoilt, 6), clean_guess, squared_distance, lbfgs)
    for solution, reason in zip(solutions, ["not finite", "zero everywhere", "which the network lacks", "shape"], strict=False):
        assert reason in solution.diverged and solution.evaluations == 0
    (alone,) = match(tasks(spoilt, 6)[4:], clean_guess, squared_distance, lbfgs)
    assert solutions[4].diverged is None and solutions[4].loss == pytest.approx(alone.loss, rel=1e-4)


def test_a_start_that_is_not_finite_diverges_alone():
    some = tasks(observations(3), 6)
    some[1] = dataclasses.replace(some[1], start={"x_0": some[1].start["x_0"] * math.nan})
    solutions = match(some, clean_guess, squared_distance, partial(adam, lr=0.05))
    assert [s.diverged for s in solutions] == [None, "the matching loss was never finite", None]
    assert [s.evaluations for s in solutions] == [6, 1, 6]


@pytest.mark.parametrize("optimise", [lbfgs, partial(adam, lr=0.05)])
def test_a_cost_whose_gradient_is_not_finite_has_diverged(optimise):
    some = tasks(observations(2), 6)

    def torn(variables):
        """Return a cost that is finite everywhere, but has no derivative at the first victim's start."""
        apart = variables["x_0"] - some[0].start["x_0"]
        return apart.flatten(1).square().sum(1).sqrt()

    solutions = match(some, clean_guess, squared_distance, optimise, torn)
    assert [solution.diverged for solution in solutions] == ["the matching loss was never finite", None]


def test_a_budget_of_zero_spends_nothing():
    for optimise in (lbfgs, partial(adam, lr=0.1)):
        (solution,) = match(tasks(observations(1), 0), clean_guess, squared_distance, optimise)
        assert solution.evaluations == 0 and solution.diverged is None


def test_threads_share_a_denoiser():
    """Each pass uses its own relaxed timesteps."""
    from concurrent.futures import ThreadPoolExecutor

    network: Denoiser = toy().network
    x = torch.randn(1, 3, 8, 8, generator=stream(0, "x"))
    weights = [Mixture(nn.functional.one_hot(torch.tensor([t]), 1000).float()) for t in range(0, 960, 60)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        alone = [network(x, t) for t in weights]
        for one, other in zip(alone, pool.map(lambda t: network(x, t).detach(), weights * 3), strict=False):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
