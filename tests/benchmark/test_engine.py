"""The engine against the slow, obvious way: one victim at a time, plain autograd, in float64."""

import copy
import dataclasses
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.autograd import grad

from benchmark.contract import Exposed, toy
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_schedule, resolve
from benchmark.federation import Round, draw_victim, observe
from benchmark.matching import engine
from benchmark.matching.adam import adam
from benchmark.matching.engine import Matching, MatchingError, Task, match
from benchmark.matching.layers import per_victim
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import (
    by_norm,
    cosine_distance,
    layerwise_cosine_distance,
    masked,
    squared_distance,
    total_variation,
    weighted,
    whitened,
)
from benchmark.matching.problem import CleanGuess, granted
from benchmark.matching.resources import Peak, predicted
from benchmark.matching.search import Searches
from benchmark.metrics import psnr
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.seeds import stream
from benchmark.spec import Spec

TOLERANCE = 1e-4
"""Largest relative error of a cost's gradient in float32, over a whole image."""


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
        seen.append(observe(trained, Exposed(), torch.zeros(3), network, draw, draw))
    return victims, seen


def observations(count, *more, **named):
    return clients(count, *more, **named)[1]


def tasks(seen, budget=1):
    draw = stream(1, "starts")
    return [Task(s, {"x_0": torch.randn(s.batch_shape, generator=draw)}, budget) for s in seen]


def points(some):
    return torch.stack([torch.cat([value.flatten() for value in task.start.values()]) for task in some])


def by_hand(task, distance, regularise=None):
    """Cost and gradient of one task in float64."""
    seen = task.seen
    network = copy.deepcopy(seen.network).double()
    x_0 = task.start["x_0"].double().requires_grad_()
    loss = training_loss(network, seen.schedule, x_0, seen.timesteps, seen.noise.double())
    update = parameter_gradient(network, loss, create_graph=True)
    one = {name: update[name][None] for name in seen.update}
    cost = distance(one, {name: value.double()[None] for name, value in seen.update.items()})
    cost = cost + (regularise({"x_0": x_0[None]}) if regularise else 0)
    return cost.detach(), grad(cost.sum(), x_0)[0].flatten()


def agree(some, distance, regularise=None, rows=None):
    costs, gradients = Matching(some, granted, distance, regularise)(points(some), range(len(some)))
    for place in rows or range(len(some)):
        cost, gradient = by_hand(some[place], distance, regularise)
        assert costs[place].double() == pytest.approx(float(cost), rel=1e-4)
        assert (gradients[place] - gradient).norm() <= TOLERANCE * gradient.norm()


DISTANCES = {
    "squared": squared_distance,
    "cosine": cosine_distance,
    "layerwise cosine": layerwise_cosine_distance,
    "masked": masked(squared_distance),
    "weighted": weighted(squared_distance, by_norm),
    "whitened": whitened(0.1),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
@pytest.mark.parametrize("batch", [1, 2])
def test_every_distance_has_the_gradient_that_float64_finds_one_by_one(distance, batch):
    agree(tasks(observations(3, batch)), distance)


def test_a_regulariser_counts_for_each_victim():
    agree(tasks(observations(3)), squared_distance, lambda v: 0.1 * total_variation(v["x_0"]))


@pytest.mark.parametrize(("name", "size"), [("tiny", 16), ("small", 32), ("ddpm-cifar10", 16), ("wide-128", 16)])
def test_every_preset_has_the_gradient_that_float64_finds(name, size):
    """The large ones on smaller images than theirs: the layers are the same."""
    model = resolve(Spec(name))
    seen = observations(2, 1, build_network(model, 0), build_schedule(model), size)
    some = tasks(seen)
    assert Matching(some, granted, squared_distance).updates.backend == "batched"
    agree(some, squared_distance, rows=[1])


def test_v_prediction_and_relaxed_timesteps_go_the_same_way():
    model = resolve(Spec("tiny", (("prediction", "v_prediction"),)))
    network, schedule = build_network(model, 0), build_schedule(model)
    seen = observations(2, 1, network, schedule, 16)
    agree(tasks(seen), squared_distance)
    corner = [nn.functional.one_hot(s.timesteps, schedule.steps).float() for s in seen]

    def relaxed(variables, known):
        return CleanGuess(variables["x_0"], variables["t"], known.noise)

    some = tasks(seen)
    soft = [Task(task.seen, {**task.start, "t": t}, 1) for task, t in zip(some, corner, strict=True)]
    costs, gradients = Matching(soft, relaxed, squared_distance)(points(soft), range(2))
    for place, task in enumerate(some):
        cost, gradient = by_hand(task, squared_distance)
        assert costs[place].double() == pytest.approx(float(cost), rel=1e-4)
        assert (gradients[place][: gradient.numel()] - gradient).norm() <= TOLERANCE * gradient.norm()


class Odd(nn.Module):
    """A layer without a rule."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((3, 1, 1), 0.7))

    def forward(self, x):
        return torch.tanh(x) * self.scale


class Net(nn.Module):
    """A network of a few layers, drawn aside from torch's global state."""

    device = "cpu"
    layers: ClassVar[dict[str, Callable[[], nn.Module]]] = {}

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            for name, make in self.layers.items():
                self.add_module(name, make())


def convolution():
    return nn.Conv2d(3, 3, 3, padding=1)


class OddNetwork(Net):
    layers: ClassVar = {"first": convolution, "odd": Odd}

    def forward(self, x_t, t):
        return self.odd(self.first(x_t))


def test_a_network_with_a_layer_without_a_rule_goes_one_by_one():
    seen = observations(3, network=OddNetwork())
    with pytest.raises(LookupError, match="odd.scale"):
        per_victim(seen[0].network, list(seen[0].update), 2)
    some = tasks(seen)
    assert Matching(some, granted, squared_distance).updates.backend == "loop"
    agree(some, squared_distance)


class Tied(Net):
    """Two layers with one weight."""

    layers: ClassVar = {"a": convolution, "b": convolution}

    def __init__(self):
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x_t, t):
        return self.b(torch.tanh(self.a(x_t)))


class Borrowed(Tied):
    """A weight that is used in its layer and again outside it."""

    def forward(self, x_t, t):
        return self.a(x_t) + nn.functional.conv2d(torch.tanh(x_t), self.a.weight, padding=1) + self.b(x_t)


class Mixing(Tied):
    """A layer without parameters in which the examples of a batch meet."""

    def forward(self, x_t, t):
        y = self.a(x_t)
        return self.b(y - y.mean(0, keepdim=True) / 2)


class BatchSecond(Net):
    """A layer that gets positions first and the batch second."""

    layers: ClassVar = {"mix": partial(nn.Linear, 8, 8)}

    def forward(self, x_t, t):
        return torch.tanh(self.mix(x_t.permute(1, 2, 0, 3))).permute(2, 0, 1, 3)


@pytest.mark.parametrize("kind", [Tied, Borrowed, Mixing, BatchSecond])
def test_a_network_whose_updates_come_out_otherwise_in_a_batch_goes_one_by_one(kind):
    some = tasks(observations(3, network=kind()))
    assert Matching(some, granted, squared_distance).updates.backend == "loop"
    agree(some, squared_distance)


class Looking(Net):
    """A network that decides by its numbers, and so cannot be played without them."""

    layers: ClassVar = {"a": convolution}

    def forward(self, x_t, t):
        return self.a(x_t) * (2.0 if x_t.sum() > 1e9 else 1.0)


def test_a_network_that_looks_at_its_numbers_is_matched_too():
    agree(tasks(observations(3, network=Looking())), squared_distance)


def test_parameters_that_were_withheld_are_neither_needed_nor_compared():
    seen = observations(2)
    kept = [name for name in seen[0].update if not name.startswith("unet.time_embedding")]
    agree(tasks([dataclasses.replace(s, update={n: s.update[n] for n in kept}) for s in seen]), squared_distance)


def test_the_attacked_network_stays_as_it_was():
    seen = observations(2)
    network = seen[0].network
    before = copy.deepcopy(network.state_dict())
    match(tasks(seen, 5), granted, squared_distance, lbfgs)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("largest", [1, 2, 5])
def test_chunks_change_nothing_beyond_rounding(largest):
    some = tasks(observations(7))
    whole, cut = Matching(some, granted, squared_distance), Matching(some, granted, squared_distance)
    cut.largest = largest
    assert max(right - left for left, right in pairwise(cut._edges(7))) <= largest
    for one, other in zip(whole(points(some), range(7)), cut(points(some), range(7)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * float(one.abs().max()), rtol=1e-5)


def test_one_core_and_many_give_the_same_bits():
    some = tasks(observations(6))
    one, many = Matching(some, granted, squared_distance), Matching(some, granted, squared_distance)
    one.workers, many.workers = 1, 3
    for a, b in zip(one(points(some), range(6)), many(points(some), range(6)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_does_not_fit_goes_one_after_the_other_and_then_in_halves(monkeypatch, at_once):
    """`at_once` victims fit the memory, in however many chunks."""
    some = tasks(observations(8))
    expected = Matching(some, granted, squared_distance)(points(some), range(8))
    matching, under_way, lock = Matching(some, granted, squared_distance), [], threading.Lock()
    matching.workers, original = 2, Matching._chunk

    def small(self, x, rows):
        with lock:
            under_way.extend(rows)
            fits = len(under_way) <= at_once
        try:
            time.sleep(0.05)
            if not fits:
                raise torch.OutOfMemoryError("no room")
            return original(self, x, rows)
        finally:
            with lock:
                for row in rows:
                    under_way.remove(row)

    monkeypatch.setattr(Matching, "_chunk", small)
    found = matching(points(some), range(8))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 * float(a.abs().max()), rtol=1e-5)
    assert (matching.largest, matching.workers) == ({1: 1, 2: 2, 5: 4}[at_once], 1)


def test_one_victim_that_does_not_fit_is_an_error(monkeypatch):
    def never(self, x, rows):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Matching, "_chunk", never)
    some = tasks(observations(2))
    with pytest.raises(torch.OutOfMemoryError):
        Matching(some, granted, squared_distance)(points(some), range(2))


def test_what_is_predicted_is_what_an_evaluation_takes():
    some = tasks(observations(4))
    seen = some[0].seen
    matching = Matching(some, granted, squared_distance)
    need = predicted(seen)
    x = points(some)
    for rows in ((0, 1), (0, 1, 2, 3)):
        with Peak() as memory:
            matching._chunk(x[list(rows)], rows)
        assert memory.peak == pytest.approx(len(rows) * need, rel=0.1)


def room_for(monkeypatch, victims, some):
    seen = some[0].seen
    need = predicted(seen)
    bytes_of_updates = len(some) * sum(value.nbytes for value in seen.update.values())
    room = max(victims * need + bytes_of_updates, 2.1 * bytes_of_updates) + 10_000
    monkeypatch.setattr(engine, "available", lambda device: int(room / engine.MEMORY_SHARE) + 1)


def test_little_memory_means_few_workers_and_then_small_chunks(monkeypatch):
    some = tasks(observations(6))
    monkeypatch.setattr(engine, "cores", lambda: 16)
    found = {}
    for victims in (100, 7, 4, 2):
        room_for(monkeypatch, victims, some)
        matching = Matching(some, granted, squared_distance)
        found[victims] = (matching.largest, matching.workers)
    assert found == {100: (3, 16), 7: (3, 2), 4: (3, 1), 2: (2, 1)}


def test_the_number_of_cores_changes_no_chunk(monkeypatch):
    some, found = tasks(observations(6)), set()
    for count in (1, 2, 5, 64):
        monkeypatch.setattr(engine, "cores", lambda count=count: count)
        found.add(tuple(Matching(some, granted, squared_distance)._edges(6)))
    assert found == {(0, 3, 6)}


def test_an_image_is_found_together_as_exactly_as_one_by_one():
    """Float32 accuracy is kept; tests/perf/test_accuracy.py has the same at 80 dB on a preset."""
    victims, seen = clients(2)
    truth = [victim.images[0] for victim in victims]
    together = match(tasks(seen, 100), granted, squared_distance, lbfgs)
    some = tasks(seen, 100)
    plain = Matching(some, granted, squared_distance)
    plain.updates.backend = "loop"
    alone = Searches(plain, points(some), [100] * 2)
    lbfgs(alone)
    for place in range(2):
        own = psnr(alone.best[place].view(3, 8, 8).clamp(-1, 1), truth[place])
        other = psnr(together[place].variables["x_0"][0].clamp(-1, 1), truth[place])
        assert own > 40 and other > own - 10


def test_victims_of_different_kinds_come_back_in_their_order():
    """Other batch sizes, networks and start variables are evaluated apart."""
    one, two = observations(2), observations(1, batch=2)
    other = observations(1, network=copy.deepcopy(one[0].network))
    some = [tasks(two)[0], *tasks(one), tasks(other)[0]]
    some = [dataclasses.replace(task, evaluations=4) for task in some]
    found = match(some, granted, squared_distance, lbfgs)
    for task, solution in zip(some, found, strict=True):
        (alone,) = match([task], granted, squared_distance, lbfgs)
        assert solution.variables["x_0"].shape == task.start["x_0"].shape
        assert solution.loss == pytest.approx(alone.loss, rel=1e-3)


def test_one_update_that_cannot_be_matched_is_told_while_the_others_go_on():
    seen = observations(5)
    spoilt = [
        dataclasses.replace(seen[0], update={n: v * math.nan for n, v in seen[0].update.items()}),
        dataclasses.replace(seen[1], update={n: v * 0 for n, v in seen[1].update.items()}),
        dataclasses.replace(seen[2], update={"unknown": next(iter(seen[2].update.values()))}),
        dataclasses.replace(seen[3], update={n: v[None] for n, v in seen[3].update.items()}),
        seen[4],
    ]
    found = match(tasks(spoilt, 6), granted, squared_distance, lbfgs)
    for solution, reason in zip(found, ["not finite", "zero everywhere", "which the network does not", "shape"], strict=False):
        assert reason in solution.diverged and solution.evaluations == 0
    (alone,) = match(tasks(spoilt, 6)[4:], granted, squared_distance, lbfgs)
    assert found[4].diverged is None and found[4].loss == pytest.approx(alone.loss, rel=1e-4)


def test_a_start_that_is_not_finite_diverges_alone():
    some = tasks(observations(3), 6)
    some[1] = dataclasses.replace(some[1], start={"x_0": some[1].start["x_0"] * math.nan})
    found = match(some, granted, squared_distance, partial(adam, lr=0.05))
    assert [s.diverged for s in found] == [None, "the matching loss was never finite", None]
    assert [s.evaluations for s in found] == [6, 1, 6]


@pytest.mark.parametrize("optimise", [lbfgs, partial(adam, lr=0.05)])
def test_a_cost_whose_gradient_is_not_finite_has_diverged(optimise):
    some = tasks(observations(2), 6)

    def torn(variables):
        """Finite everywhere, without a derivative at the start of one."""
        apart = variables["x_0"] - some[0].start["x_0"]
        return apart.flatten(1).square().sum(1).sqrt()

    found = match(some, granted, squared_distance, optimise, torn)
    assert [solution.diverged for solution in found] == ["the matching loss was never finite", None]


def test_budgets_of_nothing_spend_nothing():
    for optimise in (lbfgs, partial(adam, lr=0.1)):
        (found,) = match(tasks(observations(1), 0), granted, squared_distance, optimise)
        assert found.evaluations == 0 and found.diverged is None


class Fused(Net):
    """Attention as torch fuses it, which has no second derivative."""

    layers: ClassVar = {"mix": partial(nn.Linear, 8, 8)}

    def forward(self, x_t, t):
        q = self.mix(x_t)
        return nn.functional.scaled_dot_product_attention(q, q, q)


def test_a_layer_without_a_second_derivative_is_one_clear_error():
    with pytest.raises(MatchingError, match="a layer without a second derivative"):
        match(tasks(observations(1, network=Fused())), granted, squared_distance, lbfgs)


def test_the_denoiser_is_a_function_of_its_own_thread():
    """Relaxed timesteps of one pass are not those of another one."""
    from concurrent.futures import ThreadPoolExecutor

    network: Denoiser = toy().network
    x = torch.randn(1, 3, 8, 8, generator=stream(0, "x"))
    weights = [nn.functional.one_hot(torch.tensor([t]), 1000).float() for t in range(0, 960, 60)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        alone = [network(x, t) for t in weights]
        for one, other in zip(alone, pool.map(lambda t: network(x, t).detach(), weights * 3), strict=False):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
