import pytest
import torch

from benchmark.attacks.adam_l2 import AdamL2
from benchmark.attacks.constant_image import ConstantImage
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.evaluation.metrics import psnr


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, seen):
    (rebuilt,) = attack.run([seen], stream(3, "attack"))
    return rebuilt


def test_defaults_are_those_that_are_stated():
    assert AdamL2() == AdamL2(evaluations=300, lr=0.05)


def test_it_is_the_loop_that_one_writes_with_torch(one):
    seen, evaluations = one.observe(PlainDefense()), 6
    x = torch.randn(seen.batch_shape, generator=stream(3, "attack")).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=evaluations)
    losses = []
    for _ in range(evaluations):
        loss = training_loss(seen.network, seen.schedule, x, seen.timesteps, seen.noise)
        update = parameter_gradient(seen.network, loss, create_graph=True)
        distance = sum((update[name] - value).square().sum() for name, value in seen.update.items())
        losses.append((distance.item(), x.detach().clone()))
        (x.grad,) = torch.autograd.grad(distance, x)
        optimiser.step()
        decay.step()
    rebuilt = run(AdamL2(evaluations=evaluations), seen)
    loss, images = min(losses, key=lambda pair: pair[0])
    assert rebuilt.loss == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(rebuilt.images, images, atol=1e-3, rtol=0)


def test_it_rises_above_the_floor_slowly(one):
    rebuilt = run(AdamL2(evaluations=200), one.observe(PlainDefense()))
    floor = run(ConstantImage(), one.observe(PlainDefense()))
    found, least = (psnr(r.images[0].clamp(-1, 1), one.victim.images[0]) for r in (rebuilt, floor))
    assert rebuilt.evaluations == 200
    assert found > least + 0.5


def test_private_noise_is_searched_together_with_the_image(one):
    """The matching loss falls although nothing of the noise is known."""
    losses = [run(AdamL2(evaluations=n), one.observe(PrivateNoise())).loss for n in (2, 60)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize(("fields", "reason"), [({"evaluations": 0}, "at least 1"), ({"lr": 0.0}, "above 0")])
def test_impossible_fields_are_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        AdamL2(**fields)
