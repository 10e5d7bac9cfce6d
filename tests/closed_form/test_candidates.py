"""The fit of candidates to known coordinates, against an exhaustive search and known densities."""

import itertools

import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.closed_form.candidates import Evidence, fit

CANDIDATES = torch.randn(12, 6, generator=stream(0, "candidates"), dtype=torch.float64)


def evidence_of(chosen, share=1.0, std=0.1, seed=0):
    generator = stream(seed, "evidence")
    rows = torch.randn(20, len(chosen), generator=generator, dtype=torch.float64) @ CANDIDATES[list(chosen)]
    known = (torch.rand(rows.shape, generator=generator) < share).double()
    noisy = known * (rows + std * torch.randn(rows.shape, generator=generator, dtype=torch.float64))
    return Evidence(noisy, known / std**2 if std else known, CANDIDATES)


def slow_misfit(evidence, chosen):
    """Return the misfit by one least-squares problem for each row."""
    total = 0.0
    for row, weights in zip(evidence.rows, evidence.weights.sqrt(), strict=True):
        basis = (weights * CANDIDATES[list(chosen)]).T
        target = weights * row
        total += float((target - basis @ (torch.linalg.pinv(basis) @ target)).square().sum())
    return total


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_the_fit_is_the_best_pair_of_all(share):
    evidence = evidence_of((3, 8), share)
    misfits = {pair: slow_misfit(evidence, pair) for pair in itertools.combinations(range(12), 2)}
    best, second, *_ = sorted(misfits, key=misfits.__getitem__)
    found = fit([evidence], 2)
    assert set(found.chosen) == set(best) == {3, 8}
    assert found.misfit == pytest.approx(misfits[best], rel=1e-6)
    assert found.log_ratio == pytest.approx((misfits[second] - misfits[best]) / 2, rel=1e-6)


def test_errors_of_very_different_size_leave_the_truth_plausible():
    """The first step of Adam leaves errors that grow with the square of a coordinate."""
    exact, generator = evidence_of((3, 8), std=0.0), stream(1, "errors")
    std = torch.full_like(exact.rows, 1e-2)
    std[:, 0] = 1e-6
    errors = std * torch.randn(std.shape, generator=generator, dtype=torch.float64)
    found = fit([Evidence(exact.rows + errors, 1 / std.square(), CANDIDATES)], 2)
    assert set(found.chosen) == {3, 8} and found.plausible


def test_layers_add_their_evidence():
    parts = [evidence_of((5,), 0.5, seed=seed) for seed in (0, 1)]
    alone, both = [fit([part], 1) for part in parts], fit(parts, 1)
    assert both.chosen == (5,) and both.freedom == sum(one.freedom for one in alone)
    assert both.misfit == pytest.approx(sum(one.misfit for one in alone))


def test_a_set_that_lacks_an_image_is_implausible():
    assert fit([evidence_of((3, 8))], 2).plausible and not fit([evidence_of((3, 8))], 1).plausible


def test_a_row_with_one_known_coordinate_says_nothing():
    rows = torch.zeros(4, 6, dtype=torch.float64)
    rows[:, 0] = 1
    assert fit([Evidence(rows, (rows != 0).double(), CANDIDATES)], 1).log_ratio == pytest.approx(0, abs=1e-9)
