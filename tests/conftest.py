from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from benchmark.base.machine import configure_torch
from benchmark.clients.toy import Toy, toy
from benchmark.matching.plans import shared_plans
from tests.scenes import quick_figures

configure_torch()

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture
def scene() -> Toy:
    return toy()


@pytest.fixture
def undrawn_figures() -> object:
    """Save the figures of a test's runs without drawing them."""
    with quick_figures():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_run() -> object:
    """Plan each kind of observation once for all tests, as a run does for its cells."""
    with shared_plans():
        yield


@pytest.fixture(autouse=True)
def no_global_randomness() -> object:
    """Check that a test leaves torch's global random state as it was: the benchmark never draws from it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
