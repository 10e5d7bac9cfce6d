"""The engine: many independent gradient matchings, of many victims and restarts, as one batch.

An attack defines the search variables, the guess that they stand for, the distance and the optimiser. The engine evaluates
together what can be evaluated together, in chunks that fit the memory, on all cores of a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

from benchmark.base.machine import free_memory
from benchmark.matching.chunks import Chunked
from benchmark.matching.lbfgs import HISTORY
from benchmark.matching.objectives import Distance, squared_distance
from benchmark.matching.plans import plan_for
from benchmark.matching.problem import (
    Guess,
    Stack,
    Updates,
    clean_guess,
    mean_colour_start,
    stack,
    unrolls_local_steps,
    why_unmatchable,
)
from benchmark.matching.search import Optimiser, Searches, Solution, Variables
from benchmark.types import Observation, Update

MEMORY_SHARE = 0.7
"""Share of the free memory that all running chunks together may need, as predicted."""


@dataclass(frozen=True, eq=False)
class Task:
    """One search: its observation, its start and its budget.

    Attributes:
        observation: the observation that the search explains.
        start: variables by name, each (N, ...).
        evaluations: the budget.
        distance: a distance for this task alone, in place of the common one. It is called with one update at a time.
    """

    observation: Observation
    start: Variables
    evaluations: int
    distance: Distance | None = None


class MatchingError(RuntimeError):
    """Raised if the network cannot be matched, whatever the update is."""


Guessing = Callable[[Variables, Stack], Guess]
"""A function from variables (P, N, ...) and the known values of P victims to a guess of what lies behind their updates."""


def match(
    tasks: Sequence[Task],
    guess: Guessing,
    distance: Distance,
    optimise: Optimiser,
    regularise: Callable[[Variables], Tensor] | None = None,
) -> list[Solution]:
    """Search for each task the variables whose guessed update is nearest to the observed one. Return solutions in task order.

    If an update cannot be matched, or no cost is finite, the task's solution is marked as diverged and the others continue.
    Tasks are evaluated together if their observations hold the same network object; a copy counts as another network.

    Args:
        tasks: independent searches; restarts of one victim are several tasks.
        guess: makes guesses of variables.
        distance: (P,) between guessed and observed updates, for tasks without a distance of their own.
        optimise: moves the searches.
        regularise: (P,) to be added to the distance.

    Raises:
        MatchingError: the network has no second derivative.
    """
    solutions: dict[int, Solution] = {}
    kinds: dict[object, list[int]] = {}
    for place, task in enumerate(tasks):
        if reason := why_unmatchable(task.observation):
            solutions[place] = Solution(task.start, math.inf, 0, reason)
        else:
            kinds.setdefault(_kind(task), []).append(place)
    for places in kinds.values():
        alike = [tasks[place] for place in places]
        solutions |= zip(places, _solve(Matching(alike, guess, distance, regularise), optimise), strict=True)
    return [solutions[place] for place in range(len(tasks))]


def _kind(task: Task) -> object:
    """Return what tasks must have in common to be evaluated together."""
    observation = task.observation
    schedule = observation.schedule
    process = (schedule.prediction_type, schedule.path, schedule.level.cpu().numpy().tobytes(), schedule.min_snr)
    shapes = tuple((name, value.shape) for name, value in task.start.items())
    practice = (
        observation.batch_shape,
        observation.local_steps,
        observation.local_lr,
        observation.optimiser,
        observation.clients,
        unrolls_local_steps(observation),
    )
    held = (tuple(observation.update), observation.grants, id(observation.prior and observation.prior.network))
    return (id(observation.network), process, shapes, practice, held)


def _solve(matching: Matching, optimise: Optimiser) -> list[Solution]:
    tasks = matching.tasks
    start = torch.stack([torch.cat([value.flatten() for value in task.start.values()]) for task in tasks])
    layout = [(name, value.numel()) for name, value in tasks[0].start.items()]
    budgets = [task.evaluations for task in tasks]
    searches = Searches(matching, start, budgets, layout, matching.updates.backend)
    try:
        optimise(searches)
    finally:
        matching.close()
    best = matching.named(searches.best)
    reason = "the matching loss was never finite"
    return [
        Solution(
            {name: value[place] for name, value in best.items()},
            loss,
            searches.spent[place],
            None if math.isfinite(loss) or not searches.spent[place] else reason,
        )
        for place, loss in enumerate(searches.loss)
    ]


class Matching(Chunked):
    """Evaluates costs and gradients of P tasks that can share a batch. It is called with task numbers."""

    def __init__(
        self,
        tasks: Sequence[Task],
        guess: Guessing,
        distance: Distance,
        regularise: Callable[[Variables], Tensor] | None = None,
    ) -> None:
        self.tasks, self.guess, self.distance, self.regularise = tasks, guess, distance, regularise
        observation = tasks[0].observation
        device = torch.device(observation.network.device)
        self.shapes = {name: value.shape for name, value in tasks[0].start.items()}
        plan = plan_for(observation)
        self.updates = Updates(observation, plan.backend)
        room = int(MEMORY_SHARE * free_memory(device)) - self._optimiser_bytes()
        stacked = len(tasks) * sum(value.nbytes for value in observation.update.values())
        self.keeps_stacks = stacked < room / 2
        fitting = max(1, int((room - stacked * self.keeps_stacks) / plan.need))
        super().__init__(device, len(tasks), fitting)
        self.stacks: dict[tuple[int, ...], Stack] = {}

    def _optimiser_bytes(self) -> int:
        """Return the most bytes that an optimiser stores about its path: the pairs of L-BFGS."""
        kept = min(HISTORY, max(task.evaluations for task in self.tasks))
        return 2 * kept * sum(value.nbytes for task in self.tasks for value in task.start.values())

    def _evaluate(self, x: Tensor, chunks: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        wanted = set(map(tuple, chunks))
        self.stacks = {key: value for key, value in self.stacks.items() if key in wanted}
        return super()._evaluate(x, chunks)

    def named(self, x: Tensor) -> Variables:
        """Return the variables by name, (A, *shape), of points (A, n)."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), torch.split(x, sizes, 1), strict=True)
        return {name: part.view(len(x), *shape) for (name, shape), part in parts}

    def _chunk(self, x: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        known = self.stacks.get(rows) or stack([self.tasks[row].observation for row in rows])
        if self.keeps_stacks:
            self.stacks[rows] = known
        x = x.detach().requires_grad_()
        variables = self.named(x)
        try:
            cost = self._distances(self.updates(self.guess(variables, known)), known.update, rows)
            if self.regularise:
                cost = cost + self.regularise(variables)
            (gradient,) = grad(cost.sum(), x)
        except RuntimeError as error:
            if "derivative for" in str(error) and "not implemented" in str(error):
                raise MatchingError(f"the network has a layer without a second derivative: {error}") from error
            raise
        return cost.detach(), gradient

    def _distances(self, update: Update, observed: Update, rows: Sequence[int]) -> Tensor:
        own = [self.tasks[row].distance for row in rows]
        if not any(own):
            return self.distance(update, observed)
        each = [slice(place, place + 1) for place in range(len(rows))]
        return torch.cat(
            [
                (distance or self.distance)(_rows(update, one), _rows(observed, one))
                for one, distance in zip(each, own, strict=True)
            ]
        )


def _rows(update: Update, rows: slice) -> Update:
    return {name: value[rows] for name, value in update.items()}


def seconds_per_evaluation(observations: Sequence[Observation]) -> float:
    """Return the seconds of one evaluation of one victim, measured after a warm-up.

    All observations with the first one's shape are evaluated together. Timesteps and noise must be granted.
    """
    alike = [observation for observation in observations if observation.batch_shape == observations[0].batch_shape]
    tasks = [Task(observation, {"x_0": mean_colour_start(observation)}, 1) for observation in alike]
    matching = Matching(tasks, clean_guess, squared_distance)
    x, rows = torch.stack([task.start["x_0"].flatten() for task in tasks]), range(len(tasks))
    matching(x, rows)
    start = time.perf_counter()
    matching(x, rows)[0].tolist()
    taken = time.perf_counter() - start
    matching.close()
    return taken / len(tasks)
