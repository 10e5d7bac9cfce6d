"""Time to 30 and 50 dB with known noise and timestep, against the loops that people run: `results/performance/time-DEVICE.csv`.

The path of a search does not depend on the code that evaluates it. So each rival's path is followed once. Its seconds are its
evaluations times the seconds of one evaluation in the plain loop, measured here. The time of the rival's optimiser is not
counted. The engine's seconds are wall-clock time. An image reaches a PSNR when the best iterate by matching loss first has it.
An image that never reaches it counts with the whole budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import pytest
import torch
from rivals import loop
from scenes import scene, seconds

from benchmark.evaluation.metrics import psnr
from benchmark.matching.adam import adam, signed_adam
from benchmark.matching.engine import Matching, Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import cosine_distance, squared_distance, total_variation
from benchmark.matching.problem import clean_guess
from benchmark.matching.search import Searches
from benchmark.types import Victim

VICTIMS, BUDGET = 8, 400
THRESHOLDS = (30, 50)
RATES = (0.01, 0.03, 0.1, 0.3)


class Watched:
    """An evaluator that records when each image first reaches each threshold. A search that has reached all of them ends."""

    def __init__(self, matching: Matching, victims: Sequence[Victim]) -> None:
        self.matching, self.victims = matching, victims
        self.loss = [math.inf] * len(victims)
        self.spent = [0] * len(victims)
        self.reached: dict[int, dict[int, int]] = {threshold: {} for threshold in THRESHOLDS}
        self.judging = 0.0

    def __call__(self, x, rows):
        costs, gradients = self.matching(x, rows)
        start = time.perf_counter()
        for place, (row, cost) in enumerate(zip(rows, costs.tolist(), strict=True)):
            self.spent[row] += 1
            if cost < self.loss[row]:
                self.loss[row] = cost
                image = x[place].view(self.victims[row].images.shape)[0].clamp(-1, 1)
                quality = psnr(image, self.victims[row].images[0])
                for threshold in THRESHOLDS:
                    if quality >= threshold:
                        self.reached[threshold].setdefault(row, self.spent[row])
        self.judging += time.perf_counter() - start
        return costs, gradients

    def done(self, row: int) -> bool:
        return row in self.reached[max(THRESHOLDS)]

    def evaluations(self, threshold: int) -> float:
        """Return the mean evaluations to a threshold. An image that never reaches it counts with the whole budget."""
        return sum(self.reached[threshold].get(row, BUDGET) for row in range(VICTIMS)) / VICTIMS


def engines(tasks: Sequence[Task], victims: Sequence[Victim], optimise: Callable, *objective) -> tuple[Watched, float]:
    """Run the batched search. Return it with the seconds per evaluation and victim, everything included."""
    watched = Watched(Matching(tasks, clean_guess, *objective), victims)
    starts = torch.stack([task.start["x_0"].flatten() for task in tasks])

    class Ended(Searches):
        def with_budget(self, rows=None):
            return [row for row in super().with_budget(rows) if not watched.done(row)]

    watched.matching(starts, range(len(tasks)))
    start = time.perf_counter()
    optimise(Ended(watched, starts, [BUDGET] * len(tasks)))
    return watched, (time.perf_counter() - start - watched.judging) / sum(watched.spent)


def torch_lbfgs(tasks: Sequence[Task], victims: Sequence[Victim]) -> Watched:
    """Run torch's L-BFGS with its strong Wolfe search, one victim after the other."""
    watched = Watched(Matching(tasks, clean_guess, squared_distance), victims)

    class Over(Exception):
        pass

    for row, task in enumerate(tasks):
        x = task.start["x_0"].flatten()[None].clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [x], max_iter=BUDGET, max_eval=BUDGET, history_size=100, tolerance_grad=0, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(row=row, x=x):
            if watched.spent[row] == BUDGET or watched.done(row):
                raise Over
            cost, x.grad = watched(x.detach(), [row])
            return cost[0]

        with suppress(Over):
            optimiser.step(closure)
    return watched


def best_rate(preset: str) -> float:
    """Return the step of Adam with the lowest median matching loss after 100 evaluations on public photographs."""
    tasks, _ = scene(preset, 4, public=True)
    start = torch.stack([task.start["x_0"].flatten() for task in tasks])
    losses = {}
    for rate in RATES:
        searches = Searches(Matching(tasks, clean_guess, squared_distance), start, [100] * len(tasks))
        adam(searches, rate)
        losses[rate] = sorted(searches.loss)[len(tasks) // 2]
    return min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_time_to_an_image(time_table, preset):
    tasks, truth = scene(preset, VICTIMS)
    one = seconds(lambda: loop(tasks[:4])) / 4
    ours, batched = engines(tasks, truth, lbfgs, squared_distance)
    one = min(one, seconds(lambda: loop(tasks[:4])) / 4)
    rate = best_rate(preset)
    inverting = (cosine_distance, lambda v: 1e-4 * total_variation(v["x_0"]))
    paths = {
        "engine: L-BFGS": (ours, batched),
        "loop: torch's L-BFGS": (torch_lbfgs(tasks, truth), one),
        f"loop: Adam, step {rate:g}": (engines(tasks, truth, partial(adam, lr=rate), squared_distance)[0], one),
        "loop: Inverting Gradients": (
            engines(tasks, truth, partial(signed_adam, lr=0.1, bounds=(-1.0, 1.0)), *inverting)[0],
            one,
        ),
    }
    for threshold in THRESHOLDS:
        for rival, (watched, each) in paths.items():
            time_table.add(
                preset=preset,
                rival=rival,
                threshold_db=threshold,
                seconds=watched.evaluations(threshold) * each,
                evaluations=watched.evaluations(threshold),
                n_reached=len(watched.reached[threshold]),
                n_total=VICTIMS,
                engine_share=each / batched,
                optimiser_share=watched.evaluations(threshold) / ours.evaluations(threshold),
            )
