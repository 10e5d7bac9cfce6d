"""Victims of one network (by default the toy network), their observations, and the tasks of a search."""

import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense, toy
from benchmark.matching.engine import Task
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


def clients(count, batch=1, network=None, schedule=None, size=8):
    """Return different victims of one network, and the server's observation of each."""
    scene = toy()
    network, schedule = network or scene.network, schedule or scene.schedule
    draw, scenario = stream(0, "victims"), Scenario(batch_size=batch, image_size=size)
    victims, observed = [], []
    for _ in range(count):
        pictures = [Picture(2 * torch.rand(3, size, size, generator=draw) - 1, "noise") for _ in range(batch)]
        victims.append(draw_victim(pictures, scenario, schedule, draw))
        trained = Round(network, schedule, victims[-1], scenario)
        observed.append(
            observe(trained, PlainDefense(), AttackerKnowledge(network, torch.zeros(3), PublicParameters()), draw, draw)
        )
    return victims, observed


def observations(count, *more, **named):
    return clients(count, *more, **named)[1]


def tasks(observed, budget=1):
    """Return one task per observation, from images drawn from N(0, 1)."""
    draw = stream(1, "starts")
    return [Task(o, {"x_0": torch.randn(o.batch_shape, generator=draw)}, budget) for o in observed]


def points(some):
    """Return the starts of tasks as rows (V, n)."""
    return torch.stack([torch.cat([value.flatten() for value in task.start.values()]) for task in some])
