"""Seconds of one evaluation per victim, against the plain loop in the same process: `results/performance/engine-DEVICE.csv`.

Engine and loop have the same victims, starts, objective, allocator and threads of torch. The engine gives each core of a CPU
its own victims. The row `engine: batched, one core` has the engine on one core, and the rows `loop, ...` have the loop on all
cores. The loop is timed before and after the engine, and the faster time counts.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from rivals import differences, forward_over_reverse, loop, vectorised
from scenes import DEVICE, DISTINCT, matmul_rate, scene, seconds
from torch.utils.flop_counter import FlopCounterMode

from benchmark.base.machine import cores
from benchmark.diffusion.loss import losses
from benchmark.matching.engine import Matching
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess
from benchmark.matching.resources import Peak

PRESETS = ("tiny", "small", "ddpm-cifar10")
VICTIMS = (1, 8, 32, 64) if DEVICE == "cpu" else (1, 8, 32, 64, 128, 256)
ROUNDS = 2
PASSES = 7
"""Number of passes through the network that matching needs. Each costs as much as the forward pass."""


def points(tasks):
    return torch.stack([task.start["x_0"].flatten() for task in tasks])


def operations(task):
    """Return the useful operations of one evaluation."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        losses(
            task.observation.network,
            task.observation.schedule,
            task.start["x_0"],
            task.observation.timesteps,
            task.observation.noise,
        )
    return PASSES * counter.get_total_flops()


def peak_mib(work, victims):
    """Return the peak memory of tensors in MiB per victim; on a GPU, the growth of allocated memory."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20 / victims
    with Peak() as memory:
        work()
    return memory.peak / 2**20 / victims


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Timed:
    """One way to compute the gradient: its name, seconds and MiB per victim and evaluation, and its difference to the loop."""

    backend: str
    seconds: float
    mib: float
    difference: float = 0.0


def record(table, preset, victims, timed, loop_taken, useful):
    rate, name = matmul_rate()
    table.add(
        preset=preset,
        victims=victims,
        backend=timed.backend,
        seconds_per_evaluation_per_victim=timed.seconds,
        ratio_to_loop=loop_taken / timed.seconds,
        peak_mib_per_victim=timed.mib,
        matmul_share=useful / timed.seconds / rate,
        relative_difference_to_loop=timed.difference,
        matmul_gflops=rate / 1e9,
        matmul_dtype=name,
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("victims", VICTIMS)
def test_engine(benchmark, engine_table, preset, victims):
    tasks, _ = scene(preset, victims)
    sample = tasks[:2]
    useful, x, rows = operations(tasks[0]), points(tasks), range(victims)
    matching = Matching(tasks, clean_guess, squared_distance)
    before = seconds(lambda: loop(sample)) / len(sample)
    _, found = benchmark.pedantic(matching, (x, rows), warmup_rounds=1, rounds=ROUNDS)
    taken = benchmark.stats.stats.median / victims
    after = seconds(lambda: loop(sample)) / len(sample)
    loop_taken = min(before, after)
    expected = torch.stack([gradient.flatten() for gradient in loop(sample)])
    chunk = tuple(rows[: matching._edges(victims)[1]])
    matching.stacks.clear()
    mib = peak_mib(lambda: matching._chunk(x[: len(chunk)], chunk), len(chunk))
    exactness = error(found[: len(sample)], expected)
    whole = Timed(f"engine: {matching.updates.backend_for(len(chunk))}", taken, mib, exactness)
    record(engine_table, preset, victims, whole, loop_taken, useful)
    if matching.workers > 1 and (victims == DISTINCT or preset != PRESETS[-1]) and victims > 1:
        matching.workers = 1
        alone = seconds(lambda: matching(x, rows), 1) / victims
        one_core = Timed("engine: batched, one core", alone, mib, exactness)
        record(engine_table, preset, victims, one_core, loop_taken, useful)
    loop_mib = peak_mib(lambda: loop(sample[:1]), 1)
    record(engine_table, preset, victims, Timed("loop", loop_taken, loop_mib), loop_taken, useful)


@pytest.mark.parametrize("way", [vectorised, forward_over_reverse, differences], ids=lambda way: way.__name__)
@pytest.mark.parametrize("preset", PRESETS[:2])
def test_other_ways(benchmark, engine_table, preset, way):
    """Time other ways to compute the same gradient, for 8 victims on one core. The engine does not use them."""
    tasks, _ = scene(preset, 8)
    loop_taken = seconds(lambda: loop(tasks[:4])) / 4
    benchmark.pedantic(way, (tasks,), warmup_rounds=1, rounds=ROUNDS)
    taken = benchmark.stats.stats.median / 8
    found, expected = (torch.stack([g.flatten() for g in gradients]) for gradients in (way(tasks), loop(tasks)))
    label = f"{way.__name__.replace('_', ' ')}, one core"
    useful = operations(tasks[0])
    # The memory of torch.func's transforms cannot be watched from Python.
    record(engine_table, preset, 8, Timed(label, taken, math.nan, error(found, expected)), loop_taken, useful)


@pytest.mark.skipif(DEVICE != "cpu" or cores() < 2, reason="needs a CPU with two cores")
@pytest.mark.parametrize("preset", PRESETS)
def test_loop_on_all_cores(benchmark, engine_table, preset):
    """Time the loop on all cores, as the engine: with torch's own threads, and with one victim on each core."""
    tasks, _ = scene(preset, DISTINCT)
    tasks = tasks[: 2 * cores()]
    one_core = seconds(lambda: loop(tasks[:2])) / 2
    mib, useful = peak_mib(lambda: loop(tasks[:1]), 1), operations(tasks[0])
    with ThreadPoolExecutor(cores()) as pool:
        benchmark.pedantic(lambda: list(pool.map(lambda task: loop([task]), tasks)), warmup_rounds=1, rounds=ROUNDS)
    beside = benchmark.stats.stats.median / len(tasks)
    record(engine_table, preset, DISTINCT, Timed("loop, one victim on each core", beside, mib), one_core, useful)
    torch.set_num_threads(cores())
    try:
        inside = seconds(lambda: loop(tasks[:2])) / 2
    finally:
        torch.set_num_threads(1)
    record(engine_table, preset, DISTINCT, Timed("loop, torch's threads on all cores", inside, mib), one_core, useful)
