import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import draw_victim, image_counts
from benchmark.clients.toy import PlainDefense
from benchmark.diffusion.loss import training_loss
from benchmark.plugins import ClientStep, Picture
from benchmark.scenario import Scenario


def test_the_update_is_the_gradient_of_the_mean_loss(scene):
    update = scene.step().gradient()
    network, victim = scene.network, scene.victim
    losses = [
        training_loss(network, scene.schedule, victim.images[i : i + 1], victim.timesteps[i : i + 1], victim.noise[i : i + 1])
        for i in range(2)
    ]
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
    assert list(update) == [name for name, _ in network.named_parameters()]
    for value, reference in zip(update.values(), expected, strict=True):
        torch.testing.assert_close(value, reference, atol=1e-7, rtol=1e-5)


def test_the_update_descends_the_loss(scene):
    update = scene.step().gradient()
    before = scene.step().loss(scene.network)
    with torch.no_grad():
        for name, p in scene.network.named_parameters():
            p -= 1e-3 * update[name]
    assert scene.step().loss(scene.network) < before


def test_uniform_timesteps_cover_the_schedule(scene):
    pictures = [Picture(torch.zeros(3, 8, 8), "a")] * 4000
    t = draw_victim(pictures, Scenario(batch_size=4000), scene.schedule, stream(0, "t")).timesteps
    assert t.min() >= 0 and t.max() < scene.schedule.steps
    counts = torch.bincount(t // 100, minlength=10)
    assert ((counts - 400).abs() < 5 * 400**0.5).all()


@pytest.mark.parametrize(("timesteps", "expected"), [(200, [200, 200]), ((7, 900), [7, 900])])
def test_fixed_timesteps_are_kept(scene, timesteps, expected):
    pictures = [Picture(torch.zeros(3, 8, 8), "a")] * 2
    victim = draw_victim(pictures, Scenario(batch_size=2, timesteps=timesteps), scene.schedule, stream(0, "t"))
    assert victim.timesteps.tolist() == expected


def test_the_noise_is_standard_normal(scene):
    noise = draw_victim([Picture(torch.zeros(3, 64, 64), "a")] * 4, Scenario(), scene.schedule, stream(0, "n")).noise
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03


def test_poisson_batches_have_the_binomial_sizes_and_are_never_empty():
    sizes = torch.tensor(image_counts(Scenario(batch_size=4, sampling="poisson", sample_rate=0.1), 3000, stream(0, "s")))
    assert sizes.min() >= 1 and sizes.max() <= 40
    empty = 0.9**40
    assert float(sizes.float().mean()) == pytest.approx(4 / (1 - empty), abs=0.15)
    assert float(sizes.float().var()) == pytest.approx(40 * 0.1 * 0.9, rel=0.2)


def test_what_is_granted_is_exactly_the_truth_and_the_rest_is_public(scene):
    observation = scene.observe(PlainDefense())
    assert torch.equal(observation.timesteps, scene.victim.timesteps)
    assert torch.equal(observation.noise, scene.victim.noise)
    assert observation.batch_shape == tuple(scene.victim.images.shape)


def test_dropout_is_off_for_client_and_attacker(scene):
    from diffusers import UNet2DModel

    from benchmark.diffusion.families.unet2d import UNet2D

    plain = scene.network.unet
    with torch.random.fork_rng():
        dropping = UNet2DModel.from_config({**plain.config, "dropout": 0.5})
    dropping.load_state_dict(plain.state_dict())
    step = ClientStep(UNet2D(dropping, scene.schedule.times), scene.schedule, scene.victim, scene.scenario)
    for name, value in step.gradient().items():
        assert torch.equal(value, scene.step().gradient()[name])
