"""Tests of the forward process against diffusers, its formulas (bit for bit) and its own inverse."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from benchmark.base.seeds import stream
from benchmark.diffusion.process import TARGETS, ddpm, flow_matching
from benchmark.diffusion.schedulers import read_process

ALPHA_BAR = torch.linspace(0.99, 0.01, 1000)


@pytest.fixture
def batch():
    draw = stream(0, "batch")
    images, noise = torch.rand(3, 3, 8, 8, generator=draw) * 2 - 1, torch.randn(3, 3, 8, 8, generator=draw)
    return images, torch.tensor([0, 200, 998]), noise


def process(prediction_type):
    flow = flow_matching(1 - ALPHA_BAR)
    return flow if prediction_type == "flow_prediction" else ddpm(ALPHA_BAR, prediction_type)


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_forward_process_and_target_agree_with_diffusers(batch, beta_schedule, prediction_type):
    x_0, t, eps = batch
    scheduler = DDPMScheduler(1000, beta_schedule=beta_schedule, prediction_type=prediction_type)
    found = read_process(scheduler)
    torch.testing.assert_close(found.add_noise(x_0, t, eps), scheduler.add_noise(x_0, eps, t))
    expected = {"epsilon": eps, "sample": x_0, "v_prediction": scheduler.get_velocity(x_0, eps, t)}[prediction_type]
    torch.testing.assert_close(found.target(x_0, t, eps), expected)
    assert found.steps == 1000 and torch.equal(found.times, torch.arange(1000))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_that_of_diffusers(batch, shift):
    x_0, t, eps = batch
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    found = read_process(scheduler)
    torch.testing.assert_close(found.add_noise(x_0, t, eps), scheduler.scale_noise(x_0, found.times[t], eps))
    torch.testing.assert_close(found.times, scheduler.timesteps.flip(0))
    ahead, behind = (found.add_noise(x_0, t + step, eps) for step in (1, 0))
    slope = (ahead - behind) / (found.noise[t + 1] - found.noise[t]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.target(x_0, t, eps), slope, atol=5e-3, rtol=0)  # the target is dx/dsigma


@pytest.mark.parametrize("prediction_type", list(TARGETS))
def test_image_and_noise_follow_from_x_t_and_the_target(batch, prediction_type):
    x_0, t, eps = batch
    found = process(prediction_type)
    again = found.denoised(found.add_noise(x_0, t, eps), t, found.target(x_0, t, eps))
    torch.testing.assert_close(again, (x_0, eps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", list(TARGETS))
def test_the_determinant_agrees_with_the_two_equations(prediction_type):
    found = process(prediction_type)
    p, q, determinant = TARGETS[prediction_type](found.signal, found.noise)
    assert torch.allclose(found.signal * q - found.noise * p, torch.as_tensor(determinant))


def test_epsilon_and_v_are_computed_to_the_bit_as_their_formulas(batch):
    """Reconstructions of earlier versions stay equal to the bit."""
    x_0, t, eps = batch
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in (ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()))
    noise, v = process("epsilon"), process("v_prediction")
    assert torch.equal(noise.target(x_0, t, eps), eps)
    assert torch.equal(v.target(x_0, t, eps), alpha * eps - sigma * x_0)
    for ours, theirs in (
        (noise.denoised(x_0, t, eps), ((x_0 - sigma * eps) / alpha, eps)),
        (v.denoised(x_0, t, eps), (alpha * x_0 - sigma * eps, alpha * eps + sigma * x_0)),
    ):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_target_without_the_image_does_not_depend_on_it(batch):
    x_0, t, eps = batch
    assert torch.equal(process("epsilon").target(x_0 / 0, t, eps), eps)


def test_a_prediction_type_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="'score' is not one of epsilon, sample, v_prediction"):
        read_process(DDPMScheduler(1000, prediction_type="score"))
