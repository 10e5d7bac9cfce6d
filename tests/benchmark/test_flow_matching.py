"""Tests of flow matching: a model is trained, written, read and attacked, and its sampler takes Euler steps."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmark.attacks.activations import Activations
from benchmark.attacks.constant_image import ConstantImage
from benchmark.attacks.dlg import DLG
from benchmark.attacks.prior_sample import PriorSample
from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.base.spec import Spec, parse_one
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense, toy
from benchmark.datasets.photos import Photos
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.diffusion.conventions import Convention
from benchmark.diffusion.families.unet2d import UNet2D
from benchmark.diffusion.models import build_network, build_process, build_scheduler, resolve_model
from benchmark.diffusion.sampler import ddim
from benchmark.diffusion.schedulers import read_process
from benchmark.diffusion.training import Recipe, Training, publish
from benchmark.evaluation.metrics import psnr
from benchmark.scenario import Scenario
from benchmark.types import Prior, PublicParameters

SIZE = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The losses of a short training, and the model that it leaves."""
    scheduler = Convention("flow_prediction").scheduler()
    process = read_process(scheduler)
    network = UNet2D(toy(size=SIZE, channels=(32, 32)).network.unet, process.times)
    images = torch.stack([picture.image for picture in Photos().public(SIZE)])
    training = Training(Recipe("photos", len(images), "", "", "toy", "", "", 8, lr=3e-3), network, process, images)
    losses = []
    for _ in range(41):
        training.advance()
        losses.append(training.loss)
    out = tmp_path_factory.mktemp("flow")
    publish(training, scheduler, out, {"steps": 41})
    return losses, resolve_model(Spec(str(out)))


def attacked(model, attack, defense):
    """What an attack makes of one photograph, and its PSNR."""
    network, schedule = build_network(model, 0), build_process(model)
    scenario = Scenario(batch_size=1, image_size=SIZE, timesteps=300)
    victim = draw_victim(Photos().victims(1, SIZE, stream(0, "victim")), scenario, schedule, stream(0, "noise"))
    trained, prior = Round(network, schedule, victim, scenario), Prior(network, schedule)
    observation = observe(
        trained,
        defense,
        AttackerKnowledge(network, torch.zeros(3), PublicParameters(), prior),
        stream(0, "defense"),
        stream(0, "order"),
    )
    (found,) = attack.run([observation], stream(0, "attack"))
    return found, psnr(found.images[0].clamp(-1, 1), victim.images[0])


def test_the_loss_falls(trained):
    losses, _ = trained
    assert losses[-1] < 0.9 * losses[0]


def test_what_is_written_is_flow_matching_again(trained):
    schedule = build_process(trained[1])
    assert schedule.prediction_type == "flow_prediction"
    assert torch.allclose(schedule.noise, torch.arange(1, 1001) / 1000) and torch.allclose(schedule.signal, 1 - schedule.noise)
    assert torch.equal(build_network(trained[1], 0).times, schedule.times)


def test_an_image_whose_noise_is_known_is_rebuilt_above_the_floor(trained):
    (_, quality), (_, floor) = (attacked(trained[1], attack, PlainDefense()) for attack in (DLG(), ConstantImage()))
    assert quality > floor + 10


def test_private_noise_and_timestep_hide_nothing_from_activations(trained):
    found, quality = attacked(trained[1], Activations(evaluations=200), PrivateNoiseTimestep())
    assert found.timesteps.tolist() == [300]
    assert quality > 30


def test_the_prior_is_sampled(trained):
    found, _ = attacked(trained[1], PriorSample(steps=4), PlainDefense())
    assert found.images.isfinite().all() and found.images.abs().max() <= 1


def test_sampler_steps_without_clipping_agree_with_diffusers(trained):
    process = build_process(trained[1])
    scheduler = FlowMatchEulerDiscreteScheduler(process.steps)
    scheduler.set_timesteps(process.steps)
    z = 0.1 * torch.randn(1, 3, SIZE, SIZE, generator=stream(0, "z"))
    x = z

    def network(x_t, t):
        return 0.5 * x_t + (process.times[t] / 1000).view(-1, 1, 1, 1) * 0.1

    for t, index in zip(scheduler.timesteps, reversed(range(process.steps)), strict=True):
        x = scheduler.step(network(x, torch.tensor([index])), t, x).prev_sample
    torch.testing.assert_close(ddim(network, process, z, process.steps), x, atol=1e-4, rtol=1e-4)


def test_the_network_is_fed_the_timesteps_of_the_scheduler(trained):
    network, t = build_network(trained[1], 0), torch.tensor([0, 999])
    x_t = torch.randn(2, 3, SIZE, SIZE, generator=stream(0, "x"))
    fed = FlowMatchEulerDiscreteScheduler().timesteps.flip(0)[t]
    assert torch.equal(network(x_t, t), network.unet(x_t, fed).sample)


def test_a_preset_trains_by_flow_matching_where_its_brackets_say_so():
    model = resolve_model(parse_one("tiny[prediction=flow_prediction,steps=16]"))
    assert isinstance(build_scheduler(model), FlowMatchEulerDiscreteScheduler)
    assert torch.equal(build_network(model, 0).times, torch.arange(1, 17).float())
    with pytest.raises(UserError, match="flow_prediction has no schedule cosine"):
        resolve_model(parse_one("tiny[prediction=flow_prediction,schedule=cosine]"))
