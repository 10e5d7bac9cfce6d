"""A linear denoiser, which algebra inverts exactly. The attacks must find the same image."""

import pytest
import torch
from torch import nn

from benchmark.attacks.dlg import DLG
from benchmark.attacks.inverting_gradients import InvertingGradients
from benchmark.base.seeds import stream
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.process import ddpm
from benchmark.evaluation.metrics import psnr
from benchmark.types import Observation

SIZE = 4
PIXELS = 3 * SIZE * SIZE


class Linear(nn.Module):
    """net(x_t, t) = W x_t + b on flattened images."""

    device = "cpu"

    def __init__(self):
        super().__init__()
        draw = stream(0, "linear")
        self.weight = nn.Parameter(torch.randn(PIXELS, PIXELS, generator=draw) / PIXELS**0.5)
        self.bias = nn.Parameter(torch.randn(PIXELS, generator=draw))

    def forward(self, x_t, t):
        return (x_t.flatten(1) @ self.weight.T + self.bias).view_as(x_t)


@pytest.fixture(params=["epsilon", "v_prediction"])
def scene(request):
    draw = stream(1, "victim")
    x_0 = torch.rand(1, 3, SIZE, SIZE, generator=draw) * 2 - 1
    eps, t = torch.randn(x_0.shape, generator=draw), torch.tensor([200])
    network, schedule = Linear(), ddpm(torch.linspace(0.999, 0.001, 1000), request.param)
    update = parameter_gradient(network, training_loss(network, schedule, x_0, t, eps))
    observation = Observation(update, network, schedule, (3, SIZE, SIZE), 1, torch.zeros(3), timesteps=t, noise=eps)
    return x_0, observation


def by_algebra(observation):
    """Return x_0. From dL/dW = d x_t^T and dL/db = d follows x_t; with the granted noise follows x_0."""
    d = observation.update["bias"]
    x_t = (observation.update["weight"].T @ d / d.square().sum()).view(1, 3, SIZE, SIZE)
    alpha, sigma = observation.schedule.signal[observation.timesteps], observation.schedule.noise[observation.timesteps]
    return (x_t - sigma.view(-1, 1, 1, 1) * observation.noise) / alpha.view(-1, 1, 1, 1)


def test_algebra_inverts_it_exactly(scene):
    x_0, observation = scene
    torch.testing.assert_close(by_algebra(observation), x_0, atol=1e-4, rtol=0)


def test_dlg_finds_the_image_that_algebra_finds(scene):
    x_0, observation = scene
    (rebuilt,) = DLG(evaluations=300).run([observation], stream(0, "attack"))
    torch.testing.assert_close(rebuilt.images, by_algebra(observation), atol=1e-2, rtol=0)
    assert psnr(rebuilt.images[0], x_0[0]) > 45


def test_inverting_gradients_finds_it_too(scene):
    x_0, observation = scene
    (rebuilt,) = InvertingGradients(evaluations=600, tv=0).run([observation], stream(0, "attack"))
    assert psnr(rebuilt.images[0], x_0[0]) > 30
