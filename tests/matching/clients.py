"""Victims of one network, the toy one unless told, and what an attack is asked to make of them."""

import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense, toy
from benchmark.matching.engine import Task
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


def clients(count, batch=1, network=None, schedule=None, size=8):
    """Different victims of one network, and what the server sees of each."""
    scene = toy()
    network, schedule = network or scene.network, schedule or scene.schedule
    draw, scenario = stream(0, "victims"), Scenario(batch_size=batch, image_size=size)
    victims, seen = [], []
    for _ in range(count):
        pictures = [Picture(2 * torch.rand(3, size, size, generator=draw) - 1, "noise") for _ in range(batch)]
        victims.append(draw_victim(pictures, scenario, schedule, draw))
        trained = Round(network, schedule, victims[-1], scenario)
        seen.append(
            observe(trained, PlainDefense(), AttackerKnowledge(network, torch.zeros(3), PublicParameters()), draw, draw)
        )
    return victims, seen


def observations(count, *more, **named):
    return clients(count, *more, **named)[1]


def tasks(seen, budget=1):
    draw = stream(1, "starts")
    return [Task(s, {"x_0": torch.randn(s.batch_shape, generator=draw)}, budget) for s in seen]


def points(some):
    return torch.stack([torch.cat([value.flatten() for value in task.start.values()]) for task in some])
