"""The optimisers on problems with known answers, several searches side by side."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

from benchmark.base.events import Step, watching
from benchmark.matching.adam import adam, cosine_decay, signed_adam
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.search import Searches, Solution, best_of, best_of_each
from benchmark.matching.wolfe import C_1, C_2, strong_wolfe


def rosenbrock(x):
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


STARTS = torch.tensor([[-1.2, 1.0, -0.5], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def searching(cost, start, budget, evaluated=None):
    """Return searches of a cost on (A, n). Each evaluation is appended to `evaluated` as (row, point)."""

    def evaluate(x, rows):
        if evaluated is not None:
            evaluated.extend(zip(rows, x.clone(), strict=True))
        x = x.clone().requires_grad_()
        values = cost(x)
        return values.detach(), torch.autograd.grad(values.sum(), x)[0]

    budgets = [budget] * len(start) if isinstance(budget, int) else budget
    return Searches(evaluate, start, budgets)


def run(optimise, cost, start, budget, evaluated=None):
    searches = searching(cost, start, budget, evaluated)
    optimise(searches)
    return searches


OPTIMISERS = [lbfgs, partial(adam, lr=0.05), partial(signed_adam, lr=0.05, bounds=(-3.0, 3.0))]


@pytest.mark.parametrize("row", range(3))
def test_lbfgs_finds_the_minimum_that_scipy_finds(row):
    expected = minimize(rosen, STARTS[row].numpy(), jac=rosen_der, method="L-BFGS-B", tol=1e-14)
    found = run(lbfgs, rosenbrock, STARTS, 300)
    torch.testing.assert_close(found.best[row], torch.from_numpy(expected.x), atol=1e-4, rtol=0)
    assert found.loss[row] < 1e-8


def test_lbfgs_needs_no_more_evaluations_than_torch():
    """The cost is a quadratic of 40 dimensions with condition 1,000; both go to a relative 1e-10."""
    scales = torch.logspace(0, 3, 40, dtype=torch.float64)
    start = torch.ones(1, 40, dtype=torch.float64)

    def cost(x):
        return (scales * (x - 0.3).square()).sum(1)

    found = run(lbfgs, cost, start, 200)
    x, theirs = start.clone().requires_grad_(), []
    optimiser = torch.optim.LBFGS([x], max_iter=200, max_eval=200, history_size=100, line_search_fn="strong_wolfe")

    def closure():
        value = cost(x)[0]
        (x.grad,) = torch.autograd.grad(value, x)
        theirs.append(value.item())
        return value

    optimiser.step(closure)
    target = 1e-10 * float(cost(start))
    values = []
    with watching(lambda step: values.append(step.loss)):
        run(lbfgs, cost, start, 200)
    ours = next(count for count, value in enumerate(values, 1) if value < target)
    assert ours <= 1.2 * next(count for count, value in enumerate(theirs, 1) if value < target)
    torch.testing.assert_close(found.best, torch.full_like(start, 0.3), atol=1e-6, rtol=0)


def test_a_long_memory_needs_fewer_evaluations_than_a_short_one():
    root = torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.T + torch.eye(10, dtype=torch.float64)

    def cost(x):
        return (x @ matrix * x).sum(1)

    start = torch.ones(1, 10, dtype=torch.float64)
    spent = {}
    for history in (2, 100):
        values: list[float] = []
        with watching(lambda step, values=values: values.append(step.loss)):
            run(partial(lbfgs, history=history), cost, start, 300)
        spent[history] = next(count for count, value in enumerate(values, 1) if value < 1e-10)
    assert spent[100] < spent[2]


@pytest.mark.parametrize("optimise", OPTIMISERS, ids=lambda o: getattr(o, "__name__", "") or o.func.__name__)
def test_searches_side_by_side_do_not_depend_on_each_other(optimise):
    together = run(optimise, rosenbrock, STARTS, [25, 40, 9])
    for row, budget in enumerate([25, 40, 9]):
        alone = run(optimise, rosenbrock, STARTS[row : row + 1], budget)
        torch.testing.assert_close(together.best[row], alone.best[0], atol=1e-9, rtol=1e-9)
        assert together.spent[row] == alone.spent[0]


@pytest.mark.parametrize("optimise", OPTIMISERS, ids=lambda o: getattr(o, "__name__", "") or o.func.__name__)
@pytest.mark.parametrize("budget", [0, 1, 2, 7, 30])
def test_no_search_spends_more_than_its_budget(optimise, budget):
    evaluated = []
    found = run(optimise, rosenbrock, STARTS, [budget, 3, budget], evaluated)
    for row, limit in enumerate([budget, 3, budget]):
        assert found.spent[row] == sum(r == row for r, _ in evaluated) <= limit


def test_adam_is_torchs_adam():
    evaluated = []
    run(partial(adam, lr=0.1), rosenbrock, STARTS, 20, evaluated)
    for row in range(3):
        x = STARTS[row : row + 1].clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.1)
        for point in [p for r, p in evaluated if r == row]:
            torch.testing.assert_close(point, x.detach()[0], atol=1e-9, rtol=1e-9)
            (x.grad,) = torch.autograd.grad(rosenbrock(x).sum(), x)
            optimiser.step()


def test_adam_decays_by_the_budget_of_each_search():
    points = []
    run(partial(adam, lr=0.1, decay=cosine_decay), lambda x: x.sum(1), torch.zeros(2, 1), [4, 8], points)
    for row, budget in ((0, 4), (1, 8)):
        path = [point.item() for r, point in points if r == row]
        steps = [before - after for before, after in pairwise(path)]
        assert steps == pytest.approx([0.1 * (1 + math.cos(math.pi * i / budget)) / 2 for i in range(budget - 1)], rel=1e-4)


def test_adam_gives_each_variable_its_own_step():
    searches = searching(lambda x: x.sum(1), torch.zeros(1, 3), 2)
    searches.layout = [("a", 1), ("b", 2)]
    adam(searches, {"a": 0.5, "b": 0.01})
    torch.testing.assert_close(searches.best, torch.tensor([[-0.5, -0.01, -0.01]]), atol=1e-5, rtol=1e-5)


def test_the_best_point_is_returned_not_the_last():
    # A step this long overshoots back and forth, so the last of an odd number of points is not the best.
    evaluated = []
    found = run(
        partial(signed_adam, lr=1.0, bounds=(-5, 5), decay=1.0),
        lambda x: x.square().sum(1),
        torch.tensor([[0.3]]),
        6,
        evaluated,
    )
    values = [float(point.square()) for _, point in evaluated]
    assert found.loss[0] == pytest.approx(min(values))
    assert min(values) < values[-1]


def test_signed_adam_stays_within_bounds_and_shortens_its_steps():
    evaluated = []
    run(partial(signed_adam, lr=0.01, bounds=(-1, 0.31)), lambda x: -x.sum(1), torch.tensor([[0.0]]), 80, evaluated)
    path = [float(point) for _, point in evaluated]
    assert max(path) == pytest.approx(0.31)
    steps = [b - a for a, b in pairwise(path) if b < 0.31]
    assert steps[0] == pytest.approx(0.01, rel=1e-4)
    assert steps[-1] == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("optimise", OPTIMISERS, ids=lambda o: getattr(o, "__name__", "") or o.func.__name__)
def test_a_cost_that_is_never_finite_leaves_the_others_alone(optimise):
    poison = torch.tensor([[1.0], [math.nan]], dtype=torch.float64)
    found = run(optimise, lambda x: (x * poison[: len(x)]).square().sum(1), torch.ones(2, 2, dtype=torch.float64), 12)
    assert found.loss[1] == math.inf and found.spent[1] == 1
    assert found.loss[0] < 1.9


def test_lbfgs_recovers_from_a_step_to_a_point_that_is_not_finite():
    def cost(x):
        return torch.where(x.abs() > 3, math.nan, (x - 2.9) ** 2 + 0.01 * x**4).sum(1)

    def free(x):
        return ((x - 2.9) ** 2 + 0.01 * x**4).sum(1)

    start = torch.tensor([[-2.9]], dtype=torch.float64)
    assert run(lbfgs, cost, start, 60).loss[0] == pytest.approx(run(lbfgs, free, start, 60).loss[0], rel=1e-3)


def test_a_cost_that_becomes_nan_keeps_the_best_earlier_point():
    found = run(
        partial(signed_adam, lr=0.1, bounds=(-1, 1)),
        lambda x: torch.where(x < 0.5, math.nan, x).sum(1),
        torch.tensor([[1.0]]),
        50,
    )
    assert 0.5 <= found.loss[0] < 0.65


def test_a_search_that_has_converged_leaves_the_batch():
    found = run(lbfgs, lambda x: x.square().sum(1), torch.tensor([[0.0], [1.0]], dtype=torch.float64), 50)
    assert found.spent[0] == 1 and found.loss == [0.0, pytest.approx(0.0, abs=1e-12)]
    assert found.spent[1] < 50


def line_search(f, slope, step):
    """Run the line search on a function of one number. Return the accepted step and the number of evaluations."""
    line = strong_wolfe(f(0.0), slope(0.0), step)
    evaluations, (step, _) = 0, next(line)
    while True:
        evaluations += 1
        try:
            step, _ = line.send((f(step), slope(step)))
        except StopIteration as end:
            return end.value, evaluations


@pytest.mark.parametrize("first", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1)),
        (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
        (lambda t: math.cosh(t - 2) if t < 50 else math.inf, lambda t: math.sinh(t - 2) if t < 50 else math.inf),
    ],
)
def test_an_accepted_step_satisfies_the_strong_wolfe_conditions(f, slope, first):
    step, evaluations = line_search(f, slope, first)
    assert f(step) <= f(0.0) + C_1 * step * slope(0.0)
    assert abs(slope(step)) <= C_2 * abs(slope(0.0))
    assert evaluations <= 10


def test_the_step_is_zero_if_no_point_is_better():
    assert line_search(lambda t: 1.0 + t, lambda t: -1.0, 1.0)[0] == 0.0
    assert line_search(lambda t: math.nan if t else 1.0, lambda t: -1.0, 1.0)[0] == 0.0


def test_the_best_restart_has_the_lowest_loss_and_the_budget_of_all():
    solutions = [Solution({"x": torch.tensor(float(i))}, loss, 10) for i, loss in enumerate([3.0, 1.0, math.inf, 2.0])]
    best = best_of(solutions[:3])
    assert (float(best.variables["x"]), best.loss, best.evaluations) == (1.0, 1.0, 30)
    assert [b.loss for b in best_of_each(solutions, 2)] == [1.0, 2.0]


def test_a_watcher_receives_every_evaluation():
    steps: list[Step] = []
    outer: list[Step] = []
    with watching(outer.append):
        with watching(steps.append):
            found = run(lbfgs, rosenbrock, STARTS[:1], 12)
        run(lbfgs, rosenbrock, STARTS[:1], 3)
    assert [s.evaluation for s in steps] == list(range(1, 13))
    assert min(s.loss for s in steps) == found.loss[0]
    assert outer == steps + outer[12:] and len(outer) == 15
