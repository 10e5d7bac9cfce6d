"""The engine's gradients against plain autograd in float64, one victim at a time."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.autograd import grad

from benchmark.attacks.gidm_plus import RelaxedGuess
from benchmark.base.spec import Spec
from benchmark.diffusion.codec import Pixels
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.matching.engine import Matching, MatchingError, Task, match
from benchmark.matching.layers import per_victim
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import (
    cosine_distance,
    gaussian_nll,
    inverse_norms,
    layerwise_cosine_distance,
    masked,
    squared_distance,
    total_variation,
    weighted,
)
from benchmark.matching.problem import clean_guess
from tests.matching.clients import observations, points, tasks

TOLERANCE = 1e-4
"""Largest relative error, over a whole image, of a cost's gradient in float32."""


def by_hand(task, distance, regularise=None):
    """Return cost and gradient of one task in float64."""
    observation = task.observation
    network = copy.deepcopy(observation.network).double()
    x_0 = task.start["x_0"].double().requires_grad_()
    loss = training_loss(network, observation.schedule, x_0, observation.timesteps, observation.noise.double())
    update = parameter_gradient(network, loss, create_graph=True)
    one = {name: update[name][None] for name in observation.update}
    cost = distance(one, {name: value.double()[None] for name, value in observation.update.items()})
    cost = cost + (regularise({"x_0": x_0[None]}) if regularise else 0)
    return cost.detach(), grad(cost.sum(), x_0)[0].flatten()


def agree(some, distance, regularise=None, rows=None):
    """Compare the engine's costs and gradients with float64: of all tasks, or of those in `rows`."""
    costs, gradients = Matching(some, clean_guess, distance, regularise)(points(some), range(len(some)))
    for place in rows or range(len(some)):
        cost, gradient = by_hand(some[place], distance, regularise)
        assert costs[place].double() == pytest.approx(float(cost), rel=1e-4)
        assert (gradients[place] - gradient).norm() <= TOLERANCE * gradient.norm()


DISTANCES = {
    "squared": squared_distance,
    "cosine": cosine_distance,
    "layerwise cosine": layerwise_cosine_distance,
    "masked": masked(squared_distance),
    "weighted": weighted(squared_distance, inverse_norms),
    "gaussian_nll": gaussian_nll(0.1),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
@pytest.mark.parametrize("batch", [1, 2])
def test_every_distance_has_the_gradient_of_float64(distance, batch):
    agree(tasks(observations(3, batch)), distance)


def test_a_regulariser_applies_to_each_victim():
    agree(tasks(observations(3)), squared_distance, lambda v: 0.1 * total_variation(v["x_0"]))


@pytest.mark.parametrize(("name", "size"), [("tiny", 16), ("small", 32), ("ddpm-cifar10", 8), ("wide-128", 16)])
def test_every_preset_has_the_gradient_of_float64(name, size):
    """The large presets run on smaller images than their own. The layers are the same."""
    model = resolve_model(Spec(name))
    observed = observations(2, 1, build_network(model, 0), build_process(model), size)
    some = tasks(observed)
    assert Matching(some, clean_guess, squared_distance).updates.backend == "batched"
    agree(some, squared_distance, rows=[1])


def test_v_prediction_and_relaxed_timesteps_have_the_gradient_too():
    model = resolve_model(Spec("tiny", (("prediction", "v_prediction"),)))
    network, schedule = build_network(model, 0), build_process(model)
    observed = observations(2, 1, network, schedule, 16)
    agree(tasks(observed), squared_distance)
    corner = [nn.functional.one_hot(s.timesteps, schedule.steps).float() for s in observed]

    def relaxed(variables, known):
        return RelaxedGuess(variables["x_0"], variables["t"], known.noise)

    some = tasks(observed)
    soft = [Task(task.observation, {**task.start, "t": t}, 1) for task, t in zip(some, corner, strict=True)]
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
    """A network of a few layers, drawn without moving torch's global state."""

    device = "cpu"
    codec = Pixels()
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


def test_a_network_with_a_layer_without_a_rule_uses_the_loop():
    observed = observations(3, network=OddNetwork())
    with pytest.raises(LookupError, match="odd.scale"):
        per_victim(observed[0].network, list(observed[0].update), 2)
    some = tasks(observed)
    assert Matching(some, clean_guess, squared_distance).updates.backend == "loop"
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
    """A step without parameters that mixes the examples of a batch."""

    def forward(self, x_t, t):
        y = self.a(x_t)
        return self.b(y - y.mean(0, keepdim=True) / 2)


class BatchSecond(Net):
    """A layer whose input has positions first and the batch second."""

    layers: ClassVar = {"mix": partial(nn.Linear, 8, 8)}

    def forward(self, x_t, t):
        return torch.tanh(self.mix(x_t.permute(1, 2, 0, 3))).permute(2, 0, 1, 3)


@pytest.mark.parametrize("kind", [Tied, Borrowed, Mixing, BatchSecond])
def test_a_network_whose_updates_differ_in_a_batch_uses_the_loop(kind):
    some = tasks(observations(3, network=kind()))
    assert Matching(some, clean_guess, squared_distance).updates.backend == "loop"
    agree(some, squared_distance)


class Looking(Net):
    """A network whose control flow depends on values, so it cannot be traced without them."""

    layers: ClassVar = {"a": convolution}

    def forward(self, x_t, t):
        return self.a(x_t) * (2.0 if x_t.sum() > 1e9 else 1.0)


def test_a_network_with_data_dependent_control_flow_is_matched_too():
    agree(tasks(observations(3, network=Looking())), squared_distance)


def test_withheld_parameters_are_neither_needed_nor_compared():
    observed = observations(2)
    kept = [name for name in observed[0].update if not name.startswith("unet.time_embedding")]
    agree(tasks([dataclasses.replace(s, update={n: s.update[n] for n in kept}) for s in observed]), squared_distance)


class Fused(Net):
    """Torch's fused attention, which has no second derivative."""

    layers: ClassVar = {"mix": partial(nn.Linear, 8, 8)}

    def forward(self, x_t, t):
        q = self.mix(x_t)
        return nn.functional.scaled_dot_product_attention(q, q, q)


def test_a_layer_without_a_second_derivative_raises_one_clear_error():
    with pytest.raises(MatchingError, match="a layer without a second derivative"):
        match(tasks(observations(1, network=Fused())), clean_guess, squared_distance, lbfgs)
