from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from benchmark.contract import Toy, toy
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.models import build_network, resolve
from benchmark.spec import Spec

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture
def scene() -> Toy:
    return toy()


@pytest.fixture(scope="session")
def tiny() -> Denoiser:
    return build_network(resolve(Spec("tiny")), 0)


@pytest.fixture(autouse=True)
def no_global_randomness() -> object:
    """The bench never draws from torch's global state, so no test may see it move."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def checkout_environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120"}
