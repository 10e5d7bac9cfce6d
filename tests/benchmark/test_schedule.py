import pytest
import torch
from diffusers import DDPMScheduler

from benchmark.base.seeds import stream
from benchmark.diffusion.schedule import Schedule, from_scheduler


@pytest.fixture
def batch():
    draw = stream(0, "batch")
    images, noise = torch.rand(3, 3, 8, 8, generator=draw) * 2 - 1, torch.randn(3, 3, 8, 8, generator=draw)
    return images, torch.tensor([0, 200, 999]), noise


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_forward_process_and_target_are_those_of_diffusers(batch, beta_schedule, prediction_type):
    x_0, t, eps = batch
    scheduler = DDPMScheduler(1000, beta_schedule=beta_schedule, prediction_type=prediction_type)
    schedule = from_scheduler(scheduler)
    torch.testing.assert_close(schedule.add_noise(x_0, t, eps), scheduler.add_noise(x_0, eps, t))
    expected = eps if prediction_type == "epsilon" else scheduler.get_velocity(x_0, eps, t)
    torch.testing.assert_close(schedule.target(x_0, t, eps), expected)
    assert schedule.steps == 1000


def test_v_and_x_t_give_the_image_back(batch):
    x_0, t, eps = batch
    schedule = Schedule(torch.linspace(0.99, 0.01, 1000), "v_prediction")
    alpha_bar = schedule.alpha_bar[t].view(-1, 1, 1, 1)
    again = alpha_bar.sqrt() * schedule.add_noise(x_0, t, eps) - (1 - alpha_bar).sqrt() * schedule.target(x_0, t, eps)
    torch.testing.assert_close(again, x_0, atol=1e-5, rtol=0)


def test_a_third_prediction_type_is_refused():
    with pytest.raises(ValueError, match="sample"):
        from_scheduler(DDPMScheduler(1000, prediction_type="sample"))
