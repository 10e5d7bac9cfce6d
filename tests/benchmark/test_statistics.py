import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from benchmark.evaluation.statistics import best_intervals, median_interval, rate_interval, rate_limit, reachable_level


def test_the_interval_of_a_median_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        values = rng.normal(size=25)
        low, high = median_interval(values.tolist(), [str(i) for i in range(25)])
        covered += low <= 0 <= high
    assert 0.88 <= covered / 100 <= 0.99


def test_crops_of_one_photograph_count_once():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=8) * 10
    values = np.repeat(centres, 20) + rng.normal(size=160) * 0.01
    clustered = median_interval(values.tolist(), [str(i // 20) for i in range(160)])
    pretended = median_interval(values.tolist(), [str(i) for i in range(160)])
    assert clustered[1] - clustered[0] > 2 * (pretended[1] - pretended[0])


def test_with_one_attack_the_interval_of_the_best_is_that_attacks_own():
    values = np.random.default_rng(3).normal(size=(1, 20))
    sources = [str(i) for i in range(20)]
    assert best_intervals(values, [values], sources) == [pytest.approx(median_interval(values[0].tolist(), sources))]


def test_an_interval_of_the_best_allows_for_its_having_been_chosen():
    """Of ten attacks that learn nothing one wins by luck; with the choice in the bootstrap no bound is lower for it."""
    values = np.random.default_rng(4).normal(size=(10, 12))
    sources = [str(i) for i in range(12)]
    winner = values[np.median(values, axis=1).argmax()]
    ((low, high),) = best_intervals(values, [values], sources)
    alone = median_interval(winner.tolist(), sources)
    assert low >= alone[0] and high >= alone[1] and (low, high) != alone


def test_the_whole_range_of_few_values_covers_the_median_as_often_as_can_be():
    rng = np.random.default_rng(2)
    for n in (2, 4, 6):
        values = rng.normal(size=(20_000, n))
        covered = ((values.min(axis=1) <= 0) & (values.max(axis=1) >= 0)).mean()
        assert reachable_level(n) == pytest.approx(covered, abs=0.01)


def test_one_photograph_has_no_interval():
    assert all(map(math.isnan, median_interval([1.0, 2.0, 3.0], ["a"] * 3)))
    assert all(map(math.isnan, rate_interval(math.nan, 0)))


@pytest.mark.parametrize(("hits", "n"), [(0, 4), (4, 4), (3, 10), (50, 100)])
def test_the_interval_of_a_rate_is_wilsons(hits, n):
    found = rate_interval(hits / n, n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high))


def test_four_of_four_is_not_certainty():
    assert rate_interval(1.0, 4)[0] < 0.6


def test_the_limit_of_a_rate_leaves_five_percent_below_it():
    """At the limit, so few events or fewer have a probability of 5%."""
    assert rate_limit(0, 50) == pytest.approx(0.058, abs=5e-4)
    for events, trials in ((0, 10), (2, 30), (9, 10)):
        assert binom.cdf(events, trials, rate_limit(events, trials)) == pytest.approx(0.05)
    assert rate_limit(10, 10) == 1
    assert math.isnan(rate_limit(0, 0))
