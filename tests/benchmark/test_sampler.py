"""Tests of the sampler against diffusers' own, and of its gradient against an unrolled loop."""

import pytest
import torch
from diffusers import DDIMScheduler

from benchmark.clients.toy import toy
from benchmark.diffusion.process import ddpm
from benchmark.diffusion.sampler import ddim, ddim_inversion, ddim_timesteps, denoise

STEPS = 5


@pytest.fixture(params=["epsilon", "v_prediction"])
def prior(request):
    scene = toy()
    return scene.network, ddpm(scene.schedule.level, request.param)


def latent():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def unrolled(network, schedule, z, steps):
    """DDIM by diffusers, every activation kept."""
    theirs = DDIMScheduler(1000, prediction_type=schedule.prediction_type, clip_sample=True, set_alpha_to_one=True)
    theirs.timesteps = torch.tensor(ddim_timesteps(steps, 1000))
    theirs.num_inference_steps = steps
    x = z
    for now, following in zip(theirs.timesteps.tolist(), [*theirs.timesteps.tolist()[1:], -1], strict=True):
        theirs.config.num_train_timesteps = (now - following) * steps  # so that its next step is ours
        x = theirs.step(network(x, torch.full((len(x),), now)), now, x).prev_sample
    return x


def test_it_is_diffusers_ddim(prior):
    assert torch.allclose(ddim(*prior, latent(), STEPS), unrolled(*prior, latent(), STEPS), atol=1e-5)


def test_the_gradient_agrees_with_the_unrolled_loop(prior):
    weights = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for sampler in (ddim, unrolled):
        z = latent().requires_grad_()
        (weights * sampler(*prior, z, STEPS)).sum().backward()
        gradients.append(z.grad)
    assert gradients[1].norm() > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5 * gradients[1].abs().max().item())


def test_memory_does_not_grow_with_the_steps_activations(prior):
    def held(run):
        sizes = []

        def count(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            run(latent().requires_grad_())
        return sum(sizes)

    network, _ = prior
    activations = held(lambda z: network(z, torch.tensor([3, 3])))
    three_more = held(lambda z: ddim(*prior, z, 6)) - held(lambda z: ddim(*prior, z, 3))
    assert 0 < three_more < activations / 10


@pytest.mark.parametrize(("steps", "total"), [(1, 1000), (4, 1000), (16, 16), (50, 16)])
def test_timesteps_fall_from_the_last_to_the_first(steps, total):
    timesteps = ddim_timesteps(steps, total)
    assert timesteps[0] == total - 1 and len(timesteps) == min(steps, total)
    assert sorted(set(timesteps), reverse=True) == timesteps
    assert steps == 1 or timesteps[-1] == 0


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        ddim_timesteps(0, 10)


def test_the_inverse_is_exact_where_the_prediction_is_the_same_at_every_step():
    scene = toy()
    torch.nn.init.zeros_(scene.network.unet.conv_out.weight)
    torch.nn.init.constant_(scene.network.unet.conv_out.bias, 0.3)
    x_0 = torch.linspace(-0.5, 0.5, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    latent_of_it = ddim_inversion(scene.network, scene.schedule, x_0, 20)
    assert (latent_of_it - x_0).abs().mean() > 0.1
    assert torch.allclose(ddim(scene.network, scene.schedule, latent_of_it, 20)[:, :, 1:-1], x_0[:, :, 1:-1], atol=0.02)


def test_a_network_that_knows_the_noise_sees_the_clean_images():
    schedule, noise = toy().schedule, latent()
    clean = latent().flip(0).clamp(-1, 1)
    t = int(((schedule.noise / schedule.signal) - 0.3).abs().argmin())
    std = float(schedule.noise[t] / schedule.signal[t])

    def network(x_t, at):
        assert (at == t).all()
        return noise

    torch.testing.assert_close(denoise(network, schedule, clean + std * noise, 0.3), clean, atol=1e-5, rtol=1e-5)
