"""Evaluates many searches in chunks that fit the memory, on all cores of a CPU."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property

import torch
from torch import Tensor

from benchmark.base.machine import cores, out_of_memory

CPU_CHUNK = 8
"""The most searches that one CPU core evaluates together. More gain little and leave other cores idle."""


def threads_for(device: torch.device) -> int:
    """Return the number of threads that may evaluate at once: one on a GPU, one per core on a CPU."""
    return 1 if device.type == "cuda" else max(1, cores() // torch.get_num_threads())


class Chunked(ABC):
    """Evaluates searches in chunks, which may run in parallel; an `Evaluate` of `search.Searches`.

    The chunks depend on the number of searches and, if memory is short, on the memory. They do not depend on the number of
    cores.

    Attributes:
        device: where the chunks are evaluated.
        largest: the most searches in a chunk.
        workers: the most chunks that are evaluated at once.
    """

    def __init__(self, device: torch.device, count: int, fitting: int) -> None:
        """Choose the sizes for `count` searches, of which `fitting` fit the memory at once."""
        self.device = device
        self.largest = fitting if device.type == "cuda" else min(fitting, CPU_CHUNK, math.ceil(count / 2))
        self.workers = max(1, min(threads_for(device), fitting // self.largest))

    @abstractmethod
    def _chunk(self, x: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the costs (A,) and gradients (A, n) of the searches `rows` at `x` (A, n)."""

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `search.Evaluate`.

        If memory runs out nevertheless, chunks are evaluated one after the other from then on, and then halved.
        """
        while True:
            chunks = [rows[left:right] for left, right in itertools.pairwise(self._edges(len(rows)))]
            try:
                found = self._evaluate(x, chunks)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.largest == self.workers == 1:
                    raise
                self.largest = max(1, self.largest // 2) if self.workers == 1 else self.largest
                self.workers = 1
                continue
            return torch.cat([costs for costs, _ in found]), torch.cat([gradients for _, gradients in found])

    def close(self) -> None:
        """End the threads after their current evaluations."""
        if "_pool" in vars(self):
            self._pool.shutdown(cancel_futures=True)

    def _edges(self, count: int) -> list[int]:
        """Return where chunks begin and end: few and equal, but at least two on a CPU, to give a second core work."""
        pieces = math.ceil(count / self.largest)
        if self.device.type == "cpu":
            pieces = max(pieces, min(count, 2))
        return [round(piece * count / pieces) for piece in range(pieces + 1)]

    def _evaluate(self, x: Tensor, chunks: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        points = torch.split(x, [len(chunk) for chunk in chunks])
        if self.workers == 1 or len(chunks) == 1:
            return [self._chunk(*both) for both in zip(points, map(tuple, chunks), strict=True)]
        futures = [self._pool.submit(self._chunk, *both) for both in zip(points, map(tuple, chunks), strict=True)]
        try:
            wait(futures)  # wait for all: a chunk that ran out of memory is tried again once the others have freed theirs
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Return the threads; they end when this object is deleted."""
        return ThreadPoolExecutor(self.workers, thread_name_prefix="matching")
