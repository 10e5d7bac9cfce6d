import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm as normal

from benchmark.base.seeds import stream
from benchmark.base.spec import Spec
from benchmark.clients.federation import draw_victim
from benchmark.clients.toy import Toy, toy
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.diffusion.presets import PRESETS
from benchmark.plugins import ClientStep, Picture
from benchmark.scenario import Scenario
from benchmark.vectors import norm


def analytic_epsilon(sigma, delta):
    """Return epsilon of the Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, arXiv 1805.06530)."""

    def excess(epsilon):
        """Return delta at this epsilon, minus the given delta."""
        a, b = 1 / (2 * sigma), epsilon * sigma
        return normal.cdf(a - b) - math.exp(epsilon) * normal.cdf(-a - b) - delta

    return brentq(excess, 0, 500)


def one_at_a_time(step):
    """Return the gradient of each example by a plain loop."""
    victim = step.victim
    return [
        parameter_gradient(
            step.network,
            training_loss(
                step.network, step.schedule, victim.images[i, None], victim.timesteps[i, None], victim.noise[i, None]
            ),
        )
        for i in range(len(victim.images))
    ]


def distance(a, b):
    return norm({name: a[name] - b[name] for name in b})


def preset_step(name):
    model = resolve_model(Spec(name))
    schedule, draw = build_process(model), stream(0, "step")
    size = model.image_size
    pictures = [Picture(2 * torch.rand(3, size, size, generator=draw) - 1, "a") for _ in range(3)]
    scenario = Scenario(batch_size=3)
    return ClientStep(build_network(model, 0), schedule, draw_victim(pictures, scenario, schedule, draw), scenario)


# The presets left out have the same kinds of layers, and take minutes.
QUICK = sorted(set(PRESETS) - {"ddpm-cifar10", "ddpm-celebahq-256", "small-128", "wide-128"})


@pytest.fixture(scope="module", params=[*QUICK, "toy"])
def examples(request):
    """Return a client's step with three images, and the gradient of each image."""
    step = toy(batch=3).step() if request.param == "toy" else preset_step(request.param)
    return step, one_at_a_time(step)


@pytest.mark.parametrize("share", [0.5, 1e6])
def test_clipped_per_example_gradients_equal_the_loop(examples, share):
    """The clip is below, or far above, the norms of the gradients. Each layer is compared, so an error of Opacus shows."""
    step, gradients = examples
    clip = share * min(map(norm, gradients))
    expected = {key: torch.stack([g[key] * min(1.0, clip / norm(g)) for g in gradients]).sum(dim=0) / 3 for key in gradients[0]}
    actual = DPSGD(noise_multiplier=0, clip=clip).gradient(step, stream(0, "noise"))
    assert set(actual) == set(expected)
    assert distance(actual, expected) < 1e-5 * norm(expected)
    for key, value in expected.items():
        assert distance({key: actual[key]}, {key: value}) < 1e-4 * float(value.norm()) + 1e-7 * norm(expected), key


def test_without_noise_and_with_a_huge_clip_it_is_no_defense(scene: Toy):
    actual = DPSGD(noise_multiplier=0, clip=1e9).gradient(scene.step(), stream(0, "noise"))
    assert distance(actual, scene.step().gradient()) < 1e-5 * norm(actual)


def test_noise_has_the_stated_deviation(scene: Toy):
    defense = DPSGD(noise_multiplier=3.0, clip=0.5)
    quiet = DPSGD(noise_multiplier=0, clip=0.5).gradient(scene.step(), stream(0, "noise"))
    noisy = defense.gradient(scene.step(), stream(0, "noise"))
    noise = torch.cat([(noisy[name] - quiet[name]).flatten() for name in quiet])
    assert float(noise.std()) == pytest.approx(defense.public(scene.scenario).noise_std, rel=0.05)
    assert defense.public(scene.scenario).noise_std == 3.0 * 0.5 / 2
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / math.sqrt(noise.numel())


def test_noise_is_fresh_for_every_victim_of_a_stream(scene: Toy):
    generator = stream(0, "noise")
    first, second = (DPSGD().gradient(scene.step(), generator) for _ in range(2))
    assert distance(first, second) > 0.1 * norm(first)


def test_no_update_is_longer_than_the_clip(scene: Toy):
    assert norm(DPSGD(noise_multiplier=0, clip=1e-3).gradient(scene.step(), stream(0, "n"))) <= 1e-3 * 1.0001


def test_poisson_batches_are_divided_by_the_expected_size(scene: Toy):
    step = ClientStep(scene.network, scene.schedule, scene.victim, Scenario(batch_size=8))
    actual = DPSGD(noise_multiplier=0, clip=1e9).gradient(step, stream(0, "n"))
    expected = {name: value * 2 / 8 for name, value in scene.step().gradient().items()}
    assert distance(actual, expected) < 1e-5 * norm(expected)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("rounds", [1, 20])
def test_epsilon_at_sample_rate_one_is_that_of_the_gaussian_mechanism(sigma, rounds):
    privacy = DPSGD(noise_multiplier=sigma, rounds=rounds).privacy(Scenario())
    assert privacy.epsilon_round == pytest.approx(analytic_epsilon(sigma, 1e-5), abs=0.03)
    assert privacy.epsilon_total == pytest.approx(analytic_epsilon(sigma / math.sqrt(rounds), 1e-5), abs=0.03)
    assert privacy.epsilon_round >= analytic_epsilon(sigma, 1e-5)
    assert (privacy.delta, privacy.sample_rate, privacy.rounds) == (1e-5, 1.0, rounds)


def test_epsilon_grows_and_falls_as_theory_predicts():
    def total(sample_rate=1.0, **changes):
        sampling = "poisson" if sample_rate < 1 else "fixed"
        return DPSGD(**changes).privacy(Scenario(sampling=sampling, sample_rate=sample_rate)).epsilon_total

    assert total(noise_multiplier=2.0) < total(noise_multiplier=1.0)
    assert total(sample_rate=0.01) < total(sample_rate=0.1) < total()
    assert total(rounds=10) < total(rounds=100)
    assert total(delta=1e-3) < total(delta=1e-7)
    assert total(noise_multiplier=0.0) == math.inf
    assert total(clip=5.0) == total()


@pytest.mark.parametrize("sigma", [1.0, 8.0])
def test_a_round_of_two_local_steps_counts_as_two_rounds(sigma):
    two = DPSGD(noise_multiplier=sigma, rounds=10).privacy(Scenario(local_steps=2))
    one = DPSGD(noise_multiplier=sigma, rounds=20).privacy(Scenario())
    assert two.epsilon_total == one.epsilon_total
    assert two.epsilon_round == DPSGD(noise_multiplier=sigma, rounds=2).privacy(Scenario()).epsilon_total
    assert two.epsilon_round > one.epsilon_round
    assert DPSGD(noise_multiplier=sigma, rounds=10).privacy(Scenario(local_steps=2, clients=3)) == two


def test_noise_of_all_steps_and_clients_has_the_stated_deviation():
    """The learning rate is so small that the weights do not change."""
    scene = toy(batch=2, clients=3, local_steps=2, local_lr=1e-12)
    quiet, noisy = (scene.observe(DPSGD(noise_multiplier=sigma, clip=0.5)) for sigma in (0.0, 3.0))
    noise = torch.cat([(noisy.update[name] - quiet.update[name]).flatten() for name in quiet.update])
    assert noisy.public.noise_std == pytest.approx(3.0 * 0.5 / 2 / math.sqrt(6))
    assert float(noise.std()) == pytest.approx(noisy.public.noise_std, rel=0.05)


def test_epsilon_is_never_negative():
    assert DPSGD(delta=0.5).privacy(Scenario()).epsilon_round >= 0
    assert DPSGD(delta=0.01).privacy(Scenario(sampling="poisson", sample_rate=0.001)).epsilon_round >= 0


def test_a_broken_guarantee_is_still_a_number():
    privacy = DPSGD(noise_multiplier=0.01, rounds=100_000).privacy(Scenario())
    assert 1e4 < privacy.epsilon_total < math.inf
    assert privacy.accountant == "RDP"


@pytest.mark.parametrize(
    "fields",
    [
        {"delta": 0},
        {"delta": 1},
        {"clip": 0},
        {"noise_multiplier": -1},
        {"rounds": 0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"delta": 1e-15},
    ],
)
def test_impossible_parameters_are_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        DPSGD(**fields)
