"""Evaluation plans: one for each kind of observation, independent of earlier ones."""

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
def planned(monkeypatch) -> Sequence[Observation]:
    """Record the observations for which a plan is made."""
    recorded, new_plan = [], plans.new_plan

    def noted(observation):
        recorded.append(observation)
        return new_plan(observation)

    monkeypatch.setattr(plans, "new_plan", noted)
    return recorded


def test_a_run_plans_each_kind_of_observation_once(planned):
    one, other = observations(2), observations(1, batch=2)
    copied = dataclasses.replace(one[1], network=copy.deepcopy(one[1].network))
    with shared_plans():
        for some in (one, [copied], other, one):
            match(tasks(some, 2), clean_guess, squared_distance, lbfgs)
    assert planned == [one[0], other[0]]


def test_a_plan_does_not_outlive_its_run(planned):
    (observation,) = observations(1)
    with shared_plans():
        first = plan_for(observation)
    with shared_plans():
        second = plan_for(observation)
    assert planned == [observation, observation]
    assert first == second
    assert first.backend is Backend.BATCHED


def test_the_parameters_that_were_sent_are_part_of_the_kind(planned):
    (observation,) = observations(1)
    withheld = dataclasses.replace(observation, update=dict(list(observation.update.items())[1:]))
    with shared_plans():
        whole, part = plan_for(observation), plan_for(withheld)
    assert planned == [observation, withheld]
    assert part.need < whole.need
