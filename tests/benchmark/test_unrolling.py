"""The local training that can be differentiated: it equals torch's optimisers, and its derivative is the right one."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import grad

from benchmark.base.practice import Message, Optimiser
from benchmark.base.seeds import stream
from benchmark.diffusion.local_training import LocalTraining
from benchmark.diffusion.loss import parameter_gradient
from benchmark.diffusion.unrolling import RULES, local_update

SETTINGS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "clipped": {"max_norm": 0.05},
    "all": {"weight_decay": 0.1, "max_norm": 0.05, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
}


class Net(nn.Module):
    """A smooth network in float64, with the signature of a denoiser."""

    def __init__(self):
        super().__init__()
        draw = stream(0, "weights")
        self.first = nn.Parameter(torch.randn(5, 4, generator=draw, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(3, 5, generator=draw, dtype=torch.float64))

    def forward(self, x, t):
        return torch.tanh(x @ self.first.T + t[:, None]) @ self.last.T


def batches_of(steps):
    x = torch.randn(2 * steps, 4, generator=stream(0, "x"), dtype=torch.float64)
    return x, [slice(2 * k, 2 * k + 2) for k in range(steps)]


def loss_of(x):
    t = torch.linspace(0, 1, len(x), dtype=torch.float64)
    return lambda forward, batch: (forward(x[batch], t[batch]) - x[batch][:, :3]).square().mean()


def optimiser_of(name, setting):
    return Optimiser(name=name, lr=0.02, **SETTINGS[setting])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", RULES)
def test_it_equals_the_client_that_trains_with_torch(name, setting, steps):
    network, optimiser, (x, batches) = Net(), optimiser_of(name, setting), batches_of(steps)
    loss, before = loss_of(x), copy.deepcopy(network.state_dict())
    client = LocalTraining(network, optimiser, Message(), steps)
    for batch in batches:
        client.step(parameter_gradient(client.network, loss(client.network, batch)))
    ours = local_update(network, loss, batches, optimiser)
    for parameter, value in client.update().items():
        torch.testing.assert_close(ours[parameter].detach(), value.detach(), rtol=1e-9, atol=1e-11)
        assert torch.equal(network.get_parameter(parameter), before[parameter])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", RULES)
def test_its_derivative_agrees_with_finite_differences(name, steps):
    network, optimiser, (x, batches) = Net(), optimiser_of(name, "all"), batches_of(steps)
    weights = [torch.randn(p.shape, generator=stream(0, "along"), dtype=torch.float64) for p in network.parameters()]

    def value(x):
        update = local_update(network, loss_of(x), batches, optimiser)
        return sum((w * u).sum() for w, u in zip(weights, update.values(), strict=True))

    along = torch.randn(x.shape, generator=stream(1, "along"), dtype=torch.float64)
    (slope,) = grad(value(x.requires_grad_()), x)
    h = 1e-6
    difference = float((value(x + h * along) - value(x - h * along)).detach()) / (2 * h)
    assert float((slope * along).sum()) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "amsgrad"])
def test_a_parameter_without_gradient_has_a_finite_derivative(name):
    """The root of a zero has none of its own."""
    network, (x, batches) = Net(), batches_of(2)
    with torch.no_grad():
        network.last.zero_()  # then the first layer receives no gradient at the first step
    x.requires_grad_()
    update = local_update(network, loss_of(x), batches, Optimiser(name=name, lr=0.02))
    (slope,) = grad(sum(value.square().sum() for value in update.values()), x)
    assert slope.isfinite().all()
