"""The search over noisy images and residuals, in place of images and noise.

At a fixed noisy image x_t the update is linear in the residual r = net(x_t, t) - target, so half of the unknowns are those of a
least-squares problem; image and noise follow from x_t and r at the end. For one image there are as many unknowns either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import Guess, NoisyGuess, Stack, flat, gaussian, granted
from benchmark.matching.search import Solution
from benchmark.types import Observation


def search(
    observations: Sequence[Observation], x_t: Sequence[Tensor], budgets: Sequence[int], scale: float = 1.0
) -> list[Solution]:
    """L-BFGS on the squared distance over x_t and r, or over x_0 where the noise is granted.

    Args:
        observations: with their timesteps.
        x_t: (B, C, H, W) noisy images to begin at.
        budgets: evaluations of each.
        scale: the residual's unit, in units of x_t: the larger it is, the longer x_t stays where it is.

    Returns:
        Solutions with `x_0` and, where the noise was private, `eps`.
    """

    def guess(variables: Mapping[str, Tensor], known: Stack) -> Guess:
        if "x_0" in variables:
            return granted(variables, known)
        assert known.timesteps is not None
        return NoisyGuess(variables["x_t"], known.timesteps, scale * variables["r"])

    tasks = [Task(seen, _start(seen, x), budget) for seen, x, budget in zip(observations, x_t, budgets, strict=True)]
    found = match(tasks, guess, squared_distance, lbfgs)
    return [_named(seen, solution, scale) for seen, solution in zip(observations, found, strict=True)]


def noisy_start(seen: Observation, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): the mean colour of public images with noise on it, at the timesteps of `seen`."""
    assert seen.timesteps is not None
    return seen.schedule.add_noise(flat(seen), seen.timesteps, gaussian(seen, generator))


def _start(seen: Observation, x_t: Tensor) -> dict[str, Tensor]:
    if seen.noise is None:
        return {"x_t": x_t, "r": torch.zeros_like(x_t)}
    assert seen.timesteps is not None
    return {"x_0": seen.schedule.clean(x_t, seen.timesteps, seen.noise)}


def _named(seen: Observation, solution: Solution, scale: float) -> Solution:
    if seen.noise is not None:
        return solution
    assert seen.timesteps is not None
    x_t, r = solution.variables["x_t"], scale * solution.variables["r"]
    with torch.no_grad():
        target = seen.network(x_t, seen.timesteps) - r
    x_0, eps = seen.schedule.denoised(x_t, seen.timesteps, target)
    return dataclasses.replace(solution, variables={"x_0": x_0, "eps": eps})
