import pytest
import torch

from benchmark.attacks.adam_l2 import AdamL2
from benchmark.attacks.constant_image import ConstantImage
from benchmark.attacks.dlg import DLG
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.evaluation.metrics import psnr


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, observation):
    (rebuilt,) = attack.run([observation], stream(3, "attack"))
    return rebuilt


def test_its_budget_is_that_of_dlg():
    """The two attacks differ in the optimiser alone."""
    assert AdamL2().evaluations == DLG().evaluations


def test_it_equals_a_plain_loop_with_torch(one):
    observation, evaluations = one.observe(PlainDefense()), 6
    x = torch.randn(observation.batch_shape, generator=stream(3, "attack")).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=evaluations)
    losses = []
    for _ in range(evaluations):
        loss = training_loss(observation.network, observation.schedule, x, observation.timesteps, observation.noise)
        update = parameter_gradient(observation.network, loss, create_graph=True)
        distance = sum((update[name] - value).square().sum() for name, value in observation.update.items())
        losses.append((distance.item(), x.detach().clone()))
        (x.grad,) = torch.autograd.grad(distance, x)
        optimiser.step()
        decay.step()
    rebuilt = run(AdamL2(evaluations=evaluations), observation)
    loss, images = min(losses, key=lambda pair: pair[0])
    assert rebuilt.loss == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(rebuilt.images, images, atol=1e-3, rtol=0)


def test_it_rises_above_the_floor(one):
    observation = one.observe(PlainDefense())
    rebuilt, floor = run(AdamL2(evaluations=200), observation), run(ConstantImage(), observation)
    reached, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert rebuilt.evaluations == 200
    assert reached > least + 0.5


def test_private_noise_is_searched_together_with_the_image(one):
    """The matching loss falls although the noise is unknown."""
    losses = [run(AdamL2(evaluations=n), one.observe(PrivateNoise())).loss for n in (2, 45)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize(("fields", "reason"), [({"evaluations": 0}, "at least 1"), ({"lr": 0.0}, "above 0")])
def test_impossible_fields_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        AdamL2(**fields)
