"""How observations of one kind are evaluated: tested once for each kind within a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from benchmark.matching.problem import Backend, choose_backend, unrolls_local_steps
from benchmark.matching.resources import predicted
from benchmark.types import Observation


@dataclass(frozen=True)
class EvaluationPlan:
    """The plan for evaluating observations of one kind.

    Attributes:
        backend: how the updates of guesses are computed.
        need: bytes that one more victim adds to an evaluation.
    """

    backend: Backend
    need: int


_shared: ContextVar[dict[object, EvaluationPlan] | None] = ContextVar("shared", default=None)
"""The plans of the current run by kind, None outside a run."""


@contextmanager
def shared_plans() -> Iterator[None]:
    """Plan each kind of observation once within this context, as a run does. A plan takes as long as some evaluations."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def plan_for(observation: Observation) -> EvaluationPlan:
    """Return the plan for an observation: within `shared_plans` the earlier one of its kind, if any, else a new one."""
    plans = _shared.get()
    if plans is None:
        return new_plan(observation)
    kind = _kind(observation)
    if kind not in plans:
        plans[kind] = new_plan(observation)
    return plans[kind]


def new_plan(observation: Observation) -> EvaluationPlan:
    """Return a new plan for an observation, tested on its own network."""
    backend = choose_backend(observation)
    return EvaluationPlan(backend, predicted(observation, backend))


def _kind(observation: Observation) -> object:
    """Return what determines the plan: layers, shapes and practice, but no numbers."""
    network = observation.network
    layers = (repr(network), tuple(map(type, network.modules())))
    parameters = tuple((name, value.shape, value.dtype) for name, value in network.named_parameters())
    optimiser = observation.optimiser if unrolls_local_steps(observation) else None
    practice = (observation.batch_shape, observation.clients, observation.local_steps, optimiser)
    return layers, parameters, network.device, practice, tuple(observation.update)
