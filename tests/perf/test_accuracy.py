"""Check that the batch keeps float32 accuracy: the same searches with gradients of the plain loop and of the engine.

`results/performance/accuracy-DEVICE.csv` has the PSNR of each photograph after the same number of evaluations. Where the loop
reaches 80 dB, the engine must reach 70.
"""

from __future__ import annotations

import torch
from rivals import loop
from scenes import Table, scene

from benchmark.evaluation.metrics import psnr
from benchmark.matching.engine import Matching, Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess
from benchmark.matching.search import Searches

BUDGET = 100


def test_accuracy():
    table = Table("accuracy")
    tasks, victims = scene("tiny", 8)
    start = torch.stack([task.start["x_0"].flatten() for task in tasks])
    batched = Matching(tasks, clean_guess, squared_distance)

    def plain(x, rows):
        points = [Task(tasks[row].observation, {"x_0": x[i].view_as(tasks[row].start["x_0"])}, 1) for i, row in enumerate(rows)]
        return batched(x, rows)[0], torch.stack([gradient.flatten() for gradient in loop(points)])

    reached = {}
    for name, evaluate in (("loop", plain), ("engine", batched)):
        searches = Searches(evaluate, start, [BUDGET] * len(tasks))
        lbfgs(searches)
        images = searches.best.view(-1, *victims[0].images.shape[1:]).clamp(-1, 1)
        reached[name] = [psnr(image, victim.images[0]) for image, victim in zip(images, victims, strict=True)]
    for place, (own, other) in enumerate(zip(reached["loop"], reached["engine"], strict=True)):
        table.add(preset="tiny", victim=place, evaluations=BUDGET, psnr_loop=own, psnr_engine=other)
        assert own < 80 or other >= 70
