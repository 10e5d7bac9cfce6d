"""Scenes, clocks and tables of the performance suite. Tables go to results/performance/NAME-DEVICE.csv."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from benchmark.base.environment import describe
from benchmark.base.machine import configure_torch, cores
from benchmark.base.seeds import stream
from benchmark.base.spec import parse_one
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense
from benchmark.datasets.photos import Photos
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.matching.engine import Task
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters, Victim

configure_torch()

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESULTS = Path(__file__).resolve().parents[2] / "results" / "performance"
DISTINCT = 8
"""Number of different victims in a scene. Further ones repeat them with other starts, to limit the memory of the updates."""


def scene(name: str, count: int, public: bool = False) -> tuple[list[Task], list[Victim]]:
    """Return tasks and victims: photographs of the model's size at t = 200.

    Each task has one evaluation and starts from N(0, 1). Noise and timestep are granted.
    """
    model = resolve_model(parse_one(name))
    network, schedule = build_network(model, 0).to(DEVICE), build_process(model).to(DEVICE)
    draw, scenario = stream(0, "perf"), Scenario(timesteps=200)
    photos, size = Photos(), model.image_size
    pictures = photos.public(size)[:count] if public else photos.victims(min(count, DISTINCT), size, draw)
    victims, observed = [], []
    for picture in pictures:
        image = Picture(picture.image.to(DEVICE), picture.source)
        drawn = draw_victim([image], scenario, schedule.to("cpu"), draw)
        victim = Victim(drawn.images, drawn.timesteps.to(DEVICE), drawn.noise.to(DEVICE), drawn.sources)
        trained = Round(network, schedule, victim, scenario)
        observed.append(
            observe(
                trained,
                PlainDefense(),
                AttackerKnowledge(network, torch.zeros(3, device=DEVICE), PublicParameters()),
                draw,
                draw,
            )
        )
        victims.append(victim)
    starts = [torch.randn(observed[0].batch_shape, generator=draw).to(DEVICE) for _ in range(count)]
    return [Task(observed[i % len(observed)], {"x_0": start}, 1) for i, start in enumerate(starts)], victims


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median time of some work, after a warm-up."""
    work()
    times = []
    for _ in range(rounds):
        _wait()
        start = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@cache
def matmul_rate() -> tuple[float, str]:
    """Return the operations per second of matrix products on all cores together, and their number format."""
    n, workers = (8192, 1) if DEVICE == "cuda" else (1536, cores())
    factors = [torch.full((n, n), 0.5, device=DEVICE) for _ in range(workers)]

    def work() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda m: [m @ m for _ in range(3)], factors))

    name = "tf32" if DEVICE == "cuda" and torch.backends.cuda.matmul.allow_tf32 else "float32"
    return 3 * workers * 2 * n**3 / seconds(work), name


class Table:
    """Rows of one CSV file. The file is written again after each row, so an interrupted run keeps its rows."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}-{DEVICE}.csv"
        self.rows: list[dict[str, object]] = []

    def add(self, **row: object) -> None:
        """Add a row, with versions and device as its last columns."""
        known = describe("cuda:0" if DEVICE == "cuda" else "cpu")
        machine = known.get("gpu", known["cpu"])
        device = f"{machine}, {known['cores']} cores, {known['threads']} thread(s) each, allocator: {known['allocator']}"
        self.rows.append({**row, "versions": f"torch {known['torch']}, python {known['python']}", "device": device})
        RESULTS.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.rows).to_csv(self.path, index=False, float_format="%.4g")
