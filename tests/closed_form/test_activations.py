import dataclasses

import pytest
import torch
from torch.nn import functional as F

from benchmark.attacks._inversion import Inversion, read_update
from benchmark.attacks._residual import search
from benchmark.attacks.activations import Activations
from benchmark.attacks.residual import Residual
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.closed_form.activations import patch_span, read_activation
from benchmark.closed_form.sites import sites
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.diffusion.process import ddpm
from benchmark.evaluation.metrics import psnr
from benchmark.matching.problem import Backend, CleanGuess, NoisyGuess, Updates


def gradient_of(value, channels, seed=0):
    """Return the weight gradient of a 3 x 3 convolution with input (1, C, H, W), for a random output gradient."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.zeros(channels, value.shape[1], 3, 3, requires_grad=True)
    output = F.conv2d(value, weight, padding=1)
    (gradient,) = torch.autograd.grad((output * torch.randn(output.shape, generator=draw)).sum(), weight)
    return gradient


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angle(a, b):
    """Return 1 - |cos| of two tensors."""
    a, b = a.detach(), b.detach()
    return float(1 - (a.flatten() @ b.flatten()).abs() / (a.norm() * b.norm()))


@pytest.mark.parametrize(("channels", "size"), [(16, (4, 4)), (40, (4, 4)), (40, (6, 5))])
def test_an_input_is_read_up_to_a_factor(channels, size):
    value = random(1, 7, *size)
    span = patch_span(gradient_of(value, channels), size[0] * size[1])
    assert span is not None
    activation = read_activation(span, *size)
    assert activation is not None and angle(activation.value, value) < 1e-8
    assert activation.value.norm() == pytest.approx(1)


def test_the_output_gradient_does_not_matter():
    value = random(1, 7, 4, 4)
    first, second = (read_activation(patch_span(gradient_of(value, 20, seed), 16), 4, 4) for seed in (0, 1))
    assert angle(first.value, second.value) < 1e-8


def test_fewer_channels_than_positions_give_no_span():
    assert patch_span(gradient_of(random(1, 7, 4, 4), 15), 16) is None


def test_a_gradient_with_noise_is_refused():
    gradient = gradient_of(random(1, 7, 4, 4), 20)
    little, much = (gradient + share * gradient.std() * random(*gradient.shape) for share in (1e-2, 1.0))
    span = patch_span(little, 16)
    assert span is not None and read_activation(span, 4, 4) is None
    assert patch_span(much, 16) is None


def test_too_few_channels_to_fix_the_input_are_refused():
    """With 8 channels at 64 positions, other inputs fit nearly as well."""
    value = random(1, 8, 8, 8)
    assert read_activation(patch_span(gradient_of(value, 80), 64), 8, 8) is None


def test_a_random_span_is_refused():
    span = torch.linalg.qr(random(63, 16).double()).Q.T
    assert read_activation(span.contiguous(), 4, 4) is None


@pytest.fixture(scope="module")
def wide():
    """Return a client with one image. The lower resolution of its network has 16 positions and 32 channels."""
    return toy(batch=1, channels=(32, 32))


def test_the_client_s_own_activation_is_read(wide):
    observation = wide.observe(PrivateNoise())
    readout = read_update(observation, sites(observation.network, observation.image_shape))
    inputs = {}
    wide.network.get_submodule(readout.site.name).register_forward_pre_hook(lambda _, given: inputs.update(x=given[0]))
    victim = wide.victim
    wide.network(wide.schedule.add_noise(victim.images, victim.timesteps, victim.noise), victim.timesteps)
    assert angle(readout.activation.value, inputs["x"]) < 1e-6


def test_sites_are_in_the_order_of_the_network(wide):
    names = [site.name for site in sites(wide.network, (3, 8, 8))]
    assert names[0].endswith("conv_in") and names[-1].endswith("conv_out")
    assert names.index("unet.down_blocks.1.resnets.0.conv1") < names.index("unet.mid_block.resnets.0.conv1")


def test_the_inversions_cost_is_zero_at_the_truth_and_has_its_gradient(wide):
    observation, victim = wide.observe(PrivateNoise()), wide.victim
    inversion = Inversion([observation], [read_update(observation, sites(observation.network, observation.image_shape))], 10.0)
    x_t = wide.schedule.add_noise(victim.images, victim.timesteps, victim.noise).flatten(1)
    elsewhere, direction = random(1, 192), random(1, 192, seed=2)
    assert inversion(x_t, [0])[0] < 1e-7 < 1e-2 < inversion(elsewhere, [0])[0]
    (ahead, _), (behind, _) = (inversion(elsewhere + step * direction, [0]) for step in (1e-3, -1e-3))
    slope = (inversion(elsewhere, [0])[1] * direction).sum()
    assert float(slope) == pytest.approx(float((ahead - behind) / 2e-3), rel=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_update_is_linear_in_the_residual_at_a_noisy_image(wide, prediction):
    """Noisy image and residual together determine the update."""
    observation, victim = wide.observe(PrivateNoise()), wide.victim
    schedule = ddpm(observation.schedule.level, prediction)
    x_0, t, eps = victim.images, victim.timesteps, victim.noise
    x_t = schedule.add_noise(x_0, t, eps)
    residual = observation.network(x_t, t).detach() - schedule.target(x_0, t, eps)
    updates = Updates(type(observation)(**{**vars(observation), "schedule": schedule}), Backend.LOOP)
    clean = updates(CleanGuess(x_0[None], t[None], eps[None]))
    noisy, double = (updates(NoisyGuess(x_t[None], t[None], scale * residual[None])) for scale in (1, 2))
    largest = max(float(value.detach().norm()) for value in clean.values())
    for name, value in clean.items():
        assert torch.allclose(value, noisy[name], atol=1e-5 * largest)
        assert torch.allclose(2 * value, double[name], atol=1e-5 * largest)


def run(attack, scene, defense):
    """Return the reconstruction and the PSNR of its first image."""
    (rebuilt,) = attack.run([scene.observe(defense)], stream(1, "attack"))
    return rebuilt, psnr(rebuilt.images[0].clamp(-1, 1), scene.victim.images[0])


def test_private_noise_and_timestep_hide_nothing_from_activations(wide):
    rebuilt, quality = run(Activations(evaluations=120), wide, PrivateNoiseTimestep())
    assert quality > 40
    assert rebuilt.timesteps.tolist() == wide.victim.timesteps.tolist()
    assert rebuilt.evaluations <= 120 and "inverted the input of" in rebuilt.note
    assert (rebuilt.noise - wide.victim.noise).square().mean() < 1e-2


def test_a_batch_with_known_noise_is_rebuilt_from_the_rows_of_gradients():
    """No activation can be read from a batch. But the rows of each weight gradient lie in the span of all images' patches."""
    scene = toy(batch=2, channels=(32, 32))
    (rebuilt,) = Activations(evaluations=50).run([scene.observe(PlainDefense())], stream(1, "attack"))
    assert "spans" in rebuilt.note
    assert all(psnr(rebuilt.images[i].clamp(-1, 1), scene.victim.images[i]) > 30 for i in range(2))


def test_if_nothing_can_be_read_the_residual_is_searched_from_noise(wide):
    rebuilt, _ = run(Activations(evaluations=6), wide, DPSGD(noise_multiplier=0.1))
    assert rebuilt.note == "nothing could be inverted"


def test_the_residual_search_recovers_an_image_whose_noise_is_private(wide):
    _, quality = run(Residual(evaluations=60), wide, PrivateNoise())
    assert quality > 25


def test_restarts_share_the_budget(wide):
    rebuilt, _ = run(Residual(evaluations=9, restarts=3), wide, PrivateNoise())
    assert rebuilt.evaluations == 9


def test_victims_with_batches_of_different_sizes_are_attacked_side_by_side():
    scenes = [toy(batch=size, channels=(32, 32)) for size in (2, 3)]
    network = scenes[0].network
    observations = [dataclasses.replace(scene.observe(PrivateNoise()), network=network) for scene in scenes]
    results = Activations(evaluations=6).run(observations, stream(1, "attack"))
    assert [len(each.images) for each in results] == [2, 3] and not any(each.diverged for each in results)


def test_after_simulated_local_steps_a_match_is_the_image():
    """The residual of a later step belongs to local weights. At the global weights, a perfect match would not be the image."""
    scene = toy(batch=1, channels=(32, 32), local_steps=2, local_lr=0.05, timesteps=(200, 200))
    observation, victim = scene.observe(PrivateNoise()), scene.victim
    x_t = scene.schedule.add_noise(victim.images, victim.timesteps, victim.noise)
    (start,) = search([observation], [x_t], [1])
    assert set(start.variables) == {"x_0", "eps"}
    again = scene.schedule.add_noise(start.variables["x_0"], observation.timesteps, start.variables["eps"])
    assert torch.allclose(again, x_t, atol=1e-4)


def test_a_nan_point_has_no_finite_cost_and_leaves_other_victims_alone(wide):
    observation = wide.observe(PrivateNoise())
    readout = read_update(observation, sites(observation.network, observation.image_shape))
    costs, _ = Inversion([observation, observation], [readout, readout], 10.0)(
        torch.stack([random(192), torch.full((192,), torch.nan)]), [0, 1]
    )
    assert costs.isfinite().tolist() == [True, False]


def test_spans_are_read_before_the_up_blocks_only(wide):
    observation = wide.observe(PrivateNoise())
    names = [site.name for site in read_update(observation, sites(observation.network, observation.image_shape)).spans]
    assert names and not any("up_blocks" in name or "conv_out" in name for name in names)
