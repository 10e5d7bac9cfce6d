"""The engine's layer rules against plain autograd, one victim at a time, in float64, for generated shapes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import grad

from benchmark.base.seeds import stream
from benchmark.matching.layers import per_victim

TOLERANCE = 1e-9
"""Largest difference, relative to the largest expected value or to 1 if that is larger."""

small = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@dataclass(frozen=True, eq=False)
class Case:
    """A network of three layers and the input of all victims.

    Attributes:
        network: a layer, SiLU, and the layer under test. So the gradient of the first layer passes through the last one.
        x: (V, B, ...) the input of V victims.
        sent: the names of the parameters that get gradients.
        generator: draws the weights of the two scalar functions.
    """

    network: nn.Sequential
    x: torch.Tensor
    sent: list[str]
    generator: torch.Generator


@st.composite
def cases(draw, layers):
    """Draw a case. `layers` draws the first layer, the layer under test and the shape of one example."""
    first, layer, shape = draw(layers)
    network = nn.Sequential(first, nn.SiLU(), layer).double()
    generator = stream(draw(st.integers(0, 99)), "layers")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    names = [name for name, _ in network.named_parameters()]
    sent = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    victims, batch = draw(small), draw(st.integers(1, 3))
    x = torch.randn(victims, batch, *shape, generator=generator, dtype=torch.float64)
    return Case(network, x, sent, generator)


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    inputs, outputs = groups * draw(small), groups * draw(small)
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    shape = (inputs, *(low + draw(st.integers(0, 4)) for low in least))
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
        return nn.Conv2d(inputs, inputs, 1), layer, shape


@st.composite
def linear_layers(draw):
    inputs, outputs, places = draw(small), draw(small), draw(st.lists(small, max_size=2))
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(inputs, inputs), nn.Linear(inputs, outputs, bias=draw(st.booleans())), (*places, inputs)


@st.composite
def normalisations(draw):
    groups = draw(st.integers(1, 3))
    channels = groups * draw(small)
    shape = (channels, draw(st.integers(2, 4)), draw(small))
    with torch.random.fork_rng(devices=[]):
        return nn.Conv2d(channels, channels, 1), nn.GroupNorm(groups, channels, affine=draw(st.booleans())), shape


def check(case):
    """Compare the gradients of every victim, and the derivative in x of a function of them, with the plain loop's."""
    victims, batch = case.x.shape[:2]
    parameters = dict(case.network.named_parameters())
    shared, leaves = per_victim(case.network, case.sent, victims)
    x = case.x.flatten(0, 1).requires_grad_()
    y = shared(x)
    weights = torch.randn(y.shape, generator=case.generator, dtype=torch.float64)
    gradients = grad((weights * torch.tanh(y)).sum(), [leaves[name] for name in case.sent], create_graph=True)
    targets = [torch.randn(value.shape, generator=case.generator, dtype=torch.float64) for value in gradients]
    cost = sum((value - target).square().sum() for value, target in zip(gradients, targets, strict=True))
    second = grad(cost, x)[0].view_as(case.x)
    for victim in range(victims):
        own = case.x[victim].clone().requires_grad_()
        loss = (weights.unflatten(0, (victims, batch))[victim] * torch.tanh(case.network(own))).sum()
        expected = grad(loss, [parameters[name] for name in case.sent], create_graph=True)
        for value, other in zip(gradients, expected, strict=True):
            assert_close(value[victim], other)
        cost = sum((value - target[victim]).square().sum() for value, target in zip(expected, targets, strict=True))
        assert_close(second[victim], grad(cost, own)[0])


def assert_close(value, expected):
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(value, expected, atol=TOLERANCE * scale, rtol=0)


@settings(max_examples=100)
@given(cases(convolutions()))
def test_convolutions_have_the_gradients_of_the_plain_loop(case):
    """A grouped convolution has no rule: it is refused if its parameters need gradients, and else it runs as it is."""
    if case.network[2].groups > 1 and any(name.startswith("2.") for name in case.sent):
        with pytest.raises(LookupError, match="no rule"):
            per_victim(case.network, case.sent, len(case.x))
    else:
        check(case)


@given(cases(linear_layers()))
def test_linear_layers_have_the_gradients_of_the_plain_loop(case):
    check(case)


@given(cases(normalisations()))
def test_normalisations_have_the_gradients_of_the_plain_loop(case):
    check(case)


@pytest.mark.parametrize("changes", [{"padding": "same"}, {"padding_mode": "circular"}, {"groups": 3}])
def test_other_kinds_of_convolution_have_no_rule(changes):
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(3, 3, 3, **{"padding": 1, **changes})
    with pytest.raises(LookupError, match="no rule for the layers of bias, weight"):
        per_victim(layer, ["weight", "bias"], 2)
