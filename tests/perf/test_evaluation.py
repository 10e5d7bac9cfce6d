"""Seconds of one evaluation (matching loss with gradient) of one victim, on every preset: `tox -e perf`."""

import pytest
import torch

from benchmark.contract import Exposed
from benchmark.diffusion.models import build_network, build_schedule, resolve
from benchmark.diffusion.presets import PRESETS
from benchmark.federation import ClientStep, draw_victim, observe
from benchmark.matching.problem import evaluation
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.seeds import stream
from benchmark.spec import Spec


@pytest.mark.parametrize("name", PRESETS)
def test_one_evaluation(benchmark, name):
    model = resolve(Spec(name))
    network, schedule = build_network(model, 0), build_schedule(model)
    draw, scenario = stream(0, "perf"), Scenario(timesteps=200)
    picture = Picture(2 * torch.rand(3, model.image_size, model.image_size, generator=draw) - 1, "noise")
    victim = draw_victim([picture], scenario, schedule, draw)
    seen = observe(ClientStep(network, schedule, victim, 1), Exposed(), scenario, torch.zeros(3), network, draw)
    start = torch.randn(victim.images.shape, generator=draw)
    benchmark.pedantic(evaluation, (seen, start, victim.timesteps, victim.noise), warmup_rounds=1, rounds=5)
