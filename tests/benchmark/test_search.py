import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

from benchmark.matching.search import Solution, Step, best_of, lbfgs, signed_adam, watching


def rosenbrock(variables):
    x = variables["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


START = {"x": torch.tensor([-1.2, 1.0, -0.5], dtype=torch.float64)}


def test_lbfgs_finds_what_scipy_finds():
    expected = minimize(rosen, START["x"].numpy(), jac=rosen_der, method="L-BFGS-B", tol=1e-14)
    found = lbfgs(rosenbrock, START, 300)
    torch.testing.assert_close(found.variables["x"], torch.from_numpy(expected.x), atol=1e-4, rtol=0)
    assert found.loss < 1e-8


def test_lbfgs_searches_several_variables_together():
    target = torch.tensor([1.0, 2.0])

    def cost(v):
        return (v["a"] + v["b"] - target).square().sum() + (v["a"] - v["b"]).square().sum()

    found = lbfgs(cost, {"a": torch.zeros(2), "b": torch.ones(2)}, 50)
    for variable in found.variables.values():
        torch.testing.assert_close(variable, target / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_no_search_spends_more_than_its_budget(budget):
    calls = []

    def cost(variables):
        calls.append(1)
        return rosenbrock(variables)

    for search in (lbfgs, lambda c, s, n: signed_adam(c, s, n, 0.1, (-2, 2))):
        calls.clear()
        assert search(cost, START, budget).evaluations == len(calls) <= budget


def test_the_best_point_is_returned_not_the_last():
    # A step this long overshoots back and forth, so the last of an odd number of points is not the best.
    seen = []

    def cost(variables):
        seen.append(float(variables["x"].detach().square().sum()))
        return variables["x"].square().sum()

    found = signed_adam(cost, {"x": torch.tensor([0.3])}, 6, 1.0, (-5, 5), decay=1.0)
    assert found.loss == pytest.approx(min(seen))
    assert min(seen) < seen[-1]


def test_signed_adam_stays_within_bounds_and_shortens_its_steps():
    path = []

    def cost(variables):
        path.append(float(variables["x"].detach()))
        return -variables["x"].sum()

    signed_adam(cost, {"x": torch.tensor([0.0])}, 80, 0.01, (-1, 0.31))
    assert max(path) == pytest.approx(0.31)
    steps = [b - a for a, b in pairwise(path) if b < 0.31]
    assert steps[0] == pytest.approx(0.01, rel=1e-4)
    assert steps[-1] == pytest.approx(0.001, rel=0.05)


def test_a_cost_that_is_never_finite_has_diverged():
    found = lbfgs(lambda v: v["x"].sum() * math.nan, {"x": torch.ones(2)}, 10)
    assert found.diverged and found.evaluations == 1


def test_lbfgs_goes_on_from_its_best_point_after_a_step_into_the_void():
    def cost(variables):
        x = variables["x"]
        return torch.where(x.abs() > 3, torch.full_like(x, math.nan), (x - 2.9) ** 2 + 0.01 * x**4).sum()

    free = lbfgs(lambda v: ((v["x"] - 2.9) ** 2 + 0.01 * v["x"] ** 4).sum(), {"x": torch.tensor([-2.9])}, 60)
    found = lbfgs(cost, {"x": torch.tensor([-2.9])}, 60)
    assert found.loss == pytest.approx(free.loss, rel=1e-3)


def test_a_cost_that_breaks_later_keeps_the_best_before():
    def cost(variables):
        x = variables["x"]
        return torch.where(x < 0.5, torch.full_like(x, math.nan), x).sum()

    found = signed_adam(cost, {"x": torch.tensor([1.0])}, 50, 0.1, (-1, 1))
    assert found.diverged is None
    assert 0.5 <= found.loss < 0.65


def test_restarts_are_chosen_by_their_own_loss_and_counted_together():
    solutions = [Solution({"x": torch.tensor(float(i))}, loss, 10) for i, loss in enumerate([3.0, 1.0, math.inf])]
    best = best_of(solutions)
    assert (float(best.variables["x"]), best.loss, best.evaluations) == (1.0, 1.0, 30)


def test_whoever_watches_sees_every_evaluation():
    steps: list[Step] = []
    with watching(steps.append):
        found = lbfgs(rosenbrock, START, 12)
    lbfgs(rosenbrock, START, 3)
    assert [s.evaluation for s in steps] == list(range(1, 13))
    assert min(s.loss for s in steps) == found.loss
