from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from benchmark.base.machine import settle
from benchmark.clients.toy import Toy, toy

settle()

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture
def scene() -> Toy:
    return toy()


@pytest.fixture(autouse=True)
def no_global_randomness() -> object:
    """The bench never draws from torch's global state, so no test may see it move."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
