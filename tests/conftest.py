from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from benchmark.base.machine import configure_torch
from benchmark.clients.toy import Toy, toy
from benchmark.matching.plans import shared_plans

configure_torch()

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture
def scene() -> Toy:
    return toy()


@pytest.fixture(scope="session", autouse=True)
def one_run() -> object:
    """All tests plan each kind of observation once, as the cells of a run do."""
    with shared_plans():
        yield


@pytest.fixture(autouse=True)
def no_global_randomness() -> object:
    """The bench never draws from torch's global state, so no test may see it move."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
