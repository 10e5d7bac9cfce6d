"""How many victims are evaluated at once. It depends on the memory, and it changes no result."""

import threading
import time
from itertools import pairwise

import pytest
import torch

from benchmark.matching import chunks, engine
from benchmark.matching.engine import Matching
from benchmark.matching.objectives import squared_distance
from benchmark.matching.plans import plan_for
from benchmark.matching.problem import clean_guess
from benchmark.matching.resources import Peak
from tests.matching.clients import observations, points, tasks


@pytest.mark.parametrize("largest", [1, 2, 5])
def test_chunks_change_nothing_beyond_rounding(largest):
    some = tasks(observations(7))
    whole, cut = Matching(some, clean_guess, squared_distance), Matching(some, clean_guess, squared_distance)
    cut.largest = largest
    assert max(right - left for left, right in pairwise(cut._edges(7))) <= largest
    for one, other in zip(whole(points(some), range(7)), cut(points(some), range(7)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(one.abs().max()), rtol=1e-5)


def test_one_core_and_many_give_the_same_bits():
    some = tasks(observations(6))
    one, many = Matching(some, clean_guess, squared_distance), Matching(some, clean_guess, squared_distance)
    one.workers, many.workers = 1, 3
    for a, b in zip(one(points(some), range(6)), many(points(some), range(6)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_chunks_that_do_not_fit_run_one_by_one_and_then_in_halves(monkeypatch, at_once):
    """The memory holds `at_once` victims, in any number of chunks."""
    some = tasks(observations(8))
    expected = Matching(some, clean_guess, squared_distance)(points(some), range(8))
    matching, running, lock = Matching(some, clean_guess, squared_distance), [], threading.Lock()
    matching.workers, original = 2, Matching._chunk

    def small(self, x, rows):
        with lock:
            running.extend(rows)
            fits = len(running) <= at_once
        try:
            time.sleep(0.05)
            if not fits:
                raise torch.OutOfMemoryError("no room")
            return original(self, x, rows)
        finally:
            with lock:
                for row in rows:
                    running.remove(row)

    monkeypatch.setattr(Matching, "_chunk", small)
    actual = matching(points(some), range(8))
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 * float(a.abs().max()), rtol=1e-5)
    assert (matching.largest, matching.workers) == ({1: 1, 2: 2, 5: 4}[at_once], 1)


def test_one_victim_that_does_not_fit_is_an_error(monkeypatch):
    def never(self, x, rows):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Matching, "_chunk", never)
    some = tasks(observations(2))
    with pytest.raises(torch.OutOfMemoryError):
        Matching(some, clean_guess, squared_distance)(points(some), range(2))


def test_the_predicted_memory_is_what_an_evaluation_takes():
    some = tasks(observations(4))
    matching = Matching(some, clean_guess, squared_distance)
    need = plan_for(some[0].observation).need
    x = points(some)
    for rows in ((0, 1), (0, 1, 2, 3)):
        with Peak() as memory:
            matching._chunk(x[list(rows)], rows)
        assert memory.peak == pytest.approx(len(rows) * need, rel=0.1)


def leave_memory(monkeypatch, victims, some):
    """Pretend that the free memory holds the updates and the evaluation of so many victims."""
    observation = some[0].observation
    need = plan_for(observation).need
    bytes_of_updates = len(some) * sum(value.nbytes for value in observation.update.values())
    room = max(victims * need + bytes_of_updates, 2.1 * bytes_of_updates) + 10_000
    monkeypatch.setattr(engine, "free_memory", lambda device: int(room / engine.MEMORY_SHARE) + 1)


def test_little_memory_means_few_workers_and_then_small_chunks(monkeypatch):
    some = tasks(observations(6))
    monkeypatch.setattr(chunks, "cores", lambda: 16)
    chosen = {}
    for victims in (100, 7, 4, 2):
        leave_memory(monkeypatch, victims, some)
        matching = Matching(some, clean_guess, squared_distance)
        chosen[victims] = (matching.largest, matching.workers)
    assert chosen == {100: (3, 16), 7: (3, 2), 4: (3, 1), 2: (2, 1)}


def test_the_number_of_cores_changes_no_chunk(monkeypatch):
    some, edges = tasks(observations(6)), set()
    for count in (1, 2, 5, 64):
        monkeypatch.setattr(chunks, "cores", lambda count=count: count)
        edges.add(tuple(Matching(some, clean_guess, squared_distance)._edges(6)))
    assert edges == {(0, 3, 6)}
