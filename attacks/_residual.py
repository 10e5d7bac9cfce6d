"""Search over noisy images and residuals instead of clean images and noise.

At a fixed noisy image x_t the update is linear in the residual r = net(x_t, t) - target. So half of the unknowns solve a
least-squares problem. Image and noise follow from x_t and r at the end. The number of unknowns stays the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmark.matching.defense_aware import distance, match_defense_aware
from benchmark.matching.engine import Task
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.problem import (
    Guess,
    NoisyGuess,
    Stack,
    clean_guess,
    gaussian_start,
    mean_colour_start,
    unrolls_local_steps,
)
from benchmark.matching.search import Solution
from benchmark.types import Observation

ENOUGH_EVALUATIONS = 1000
"""Evaluations per image with which the search has recovered images in results/attacks, even with private noise."""


def search(
    observations: Sequence[Observation], starts: Sequence[Tensor], budgets: Sequence[int], scale: float = 1.0
) -> list[Solution]:
    """Minimise the squared distance, adapted to the defense, by L-BFGS over x_t and r, or over x_0 if the noise is granted.

    If local steps are simulated, each residual belongs to the weights of its own step. Then x_0 and eps are searched instead.

    Args:
        observations: observations with known timesteps.
        starts: (B, C, H, W) each, noisy images, or clean images if the noise is granted. r starts at zero.
        budgets: evaluations for each observation.
        scale: the unit of the residual in units of x_t. The larger it is, the longer x_t stays near its start.

    Returns:
        Solutions with `x_0` and, if the noise was private, `eps`.
    """

    def guess(variables: Mapping[str, Tensor], known: Stack) -> Guess:
        if "x_0" in variables:
            return clean_guess(variables, known)
        assert known.timesteps is not None
        return NoisyGuess(variables["x_t"], known.timesteps, scale * variables["r"])

    tasks = [
        Task(observation, _start_variables(observation, x), budget)
        for observation, x, budget in zip(observations, starts, budgets, strict=True)
    ]
    found = match_defense_aware(tasks, guess, distance, lbfgs)
    return [
        _with_image_and_noise(observation, solution, scale) for observation, solution in zip(observations, found, strict=True)
    ]


def default_start(observation: Observation, generator: torch.Generator) -> Tensor:
    """Return the mean colour of public images (B, C, H, W), noised to the level of the timesteps if the noise is private."""
    assert observation.timesteps is not None
    if observation.noise is not None:
        return mean_colour_start(observation)
    return observation.schedule.add_noise(
        mean_colour_start(observation), observation.timesteps, gaussian_start(observation, generator)
    )


def _start_variables(observation: Observation, x: Tensor) -> dict[str, Tensor]:
    if observation.noise is not None:
        return {"x_0": x}
    r = torch.zeros_like(x)
    return _image_and_noise(observation, x, r) if unrolls_local_steps(observation) else {"x_t": x, "r": r}


def _with_image_and_noise(observation: Observation, solution: Solution, scale: float) -> Solution:
    if "x_0" in solution.variables:
        return solution
    variables = _image_and_noise(observation, solution.variables["x_t"], scale * solution.variables["r"])
    return dataclasses.replace(solution, variables=variables)


@torch.no_grad()
def _image_and_noise(observation: Observation, x_t: Tensor, r: Tensor) -> dict[str, Tensor]:
    """Return the image and the noise that follow from a noisy image and its residual at the global weights."""
    assert observation.timesteps is not None
    x_0, eps = observation.schedule.denoised(x_t, observation.timesteps, observation.network(x_t, observation.timesteps) - r)
    return {"x_0": x_0, "eps": eps}
