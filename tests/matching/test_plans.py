"""How an observation is evaluated is found once for each kind, and does not depend on what came before."""

import copy
import dataclasses
from collections.abc import Sequence

import pytest

from benchmark.matching import plans
from benchmark.matching.engine import match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.plans import plan_for, shared_plans
from benchmark.matching.problem import Backend, clean_guess
from benchmark.types import Observation
from tests.matching.clients import observations, tasks


@pytest.fixture
def tried(monkeypatch) -> Sequence[Observation]:
    """The observations that a plan is made for."""
    asked, new_plan = [], plans.new_plan

    def noted(observation):
        asked.append(observation)
        return new_plan(observation)

    monkeypatch.setattr(plans, "new_plan", noted)
    return asked


def test_a_run_plans_each_kind_of_observation_once(tried):
    one, other = observations(2), observations(1, batch=2)
    copied = dataclasses.replace(one[1], network=copy.deepcopy(one[1].network))
    with shared_plans():
        for seen in (one, [copied], other, one):
            match(tasks(seen, 2), clean_guess, squared_distance, lbfgs)
    assert tried == [one[0], other[0]]


def test_a_plan_does_not_outlive_its_run(tried):
    (seen,) = observations(1)
    with shared_plans():
        first = plan_for(seen)
    with shared_plans():
        second = plan_for(seen)
    assert tried == [seen, seen]
    assert first == second
    assert first.backend is Backend.BATCHED


def test_what_left_the_client_is_part_of_the_kind(tried):
    (seen,) = observations(1)
    withheld = dataclasses.replace(seen, update=dict(list(seen.update.items())[1:]))
    with shared_plans():
        whole, part = plan_for(seen), plan_for(withheld)
    assert tried == [seen, withheld]
    assert part.need < whole.need
