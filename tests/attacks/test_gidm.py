import dataclasses

import pytest
import torch

from benchmark.attacks import gidm
from benchmark.attacks.dlg import DLG
from benchmark.attacks.gidm import GIDM
from benchmark.attacks.gidm_plus import GIDMPlus
from benchmark.attacks.prior_sample import PriorSample
from benchmark.base.seeds import stream
from benchmark.base.spec import Spec
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.near_noise import NearNoise
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.diffusion.sampler import ddim
from benchmark.evaluation.metrics import psnr
from benchmark.matching.adam import adam
from benchmark.matching.objectives import squared_distance
from benchmark.scenario import Scenario


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, observation, seed=3):
    (rebuilt,) = attack.run([observation], stream(seed, "attack"))
    return rebuilt


def matching_loss(observation, images):
    update = guessed_update(observation, images)
    return sum((update[name] - value).square().sum().item() for name, value in observation.update.items())


def guessed_update(observation, images):
    loss = training_loss(observation.network, observation.schedule, images, observation.timesteps, observation.noise)
    return parameter_gradient(observation.network, loss, create_graph=True)


def test_defaults_are_those_of_the_reference_code():
    """2,501 steps of Adam on the latent and 5,001 on the image."""
    assert GIDM() == GIDM(preset="reference", evaluations=2501 + 5001, latent_share=None, sampler_steps=None)
    reference = gidm.PRESETS["reference"]
    assert round(reference.latent_share * GIDM().evaluations) == 2501
    assert (reference.search.func, reference.search.keywords) == (adam, {"lr": 0.01})
    assert reference.latent_distance is squared_distance
    assert (reference.sampler_steps, reference.start) == (16, "gaussian")


@pytest.mark.parametrize("preset", ["reference", "tuned"])
def test_phase_2_never_worsens_the_matching_loss(one, preset):
    observation = one.observe(PlainDefense())
    short = {"preset": preset, "sampler_steps": 3}
    phase_1 = run(GIDM(evaluations=4, latent_share=1, **short), observation)
    both = run(GIDM(evaluations=16, latent_share=0.25, **short), observation)
    assert phase_1.evaluations == 4 and both.evaluations == 16
    assert both.loss <= matching_loss(observation, phase_1.images) * (1 + 1e-5)
    assert both.loss == pytest.approx(matching_loss(observation, both.images), rel=1e-4)


def test_phase_1_gives_an_image_of_the_sampler_and_phase_2_leaves_it(one):
    observation = one.observe(PlainDefense())
    phase_1 = run(GIDM(evaluations=1, latent_share=1, sampler_steps=3), observation)
    z = torch.randn(observation.batch_shape, generator=stream(3, "attack"))
    assert torch.allclose(phase_1.images, ddim(observation.prior.network, observation.prior.schedule, z, 3))
    assert not torch.equal(run(GIDM(evaluations=9, latent_share=0.2, sampler_steps=3), observation).images, phase_1.images)


def test_the_prior_has_weights_of_its_own(one):
    """If prior and attacked network shared weights, the update would be a gradient through the sampler too."""
    observation = one.observe(PlainDefense())
    assert not any(p.requires_grad for p in observation.prior.network.parameters())
    theirs, granted = observation.prior.network.parameters(), observation.network.parameters()
    assert all(torch.equal(p, q) and p.data_ptr() != q.data_ptr() for p, q in zip(theirs, granted, strict=True))
    z = torch.randn(observation.batch_shape, generator=stream(0, "z")).requires_grad_()
    x_0 = ddim(observation.prior.network, observation.prior.schedule, z, 2)
    through = guessed_update(observation, x_0)
    plain = guessed_update(observation, x_0.detach())
    assert all(torch.allclose(through[name], plain[name]) for name in plain)
    shared = guessed_update(observation, ddim(observation.network, observation.schedule, z, 2))
    assert not all(torch.allclose(shared[name], plain[name]) for name in plain), "the test would notice shared weights"


def test_without_a_prior_phase_1_is_skipped_and_a_note_says_so(one):
    observation = dataclasses.replace(one.observe(PlainDefense()), prior=None)
    rebuilt = run(GIDM(evaluations=6), observation)
    assert rebuilt.evaluations == 6 and rebuilt.note == "phase 1 skipped: no prior is granted"
    assert run(GIDM(evaluations=6, latent_share=0), observation).note == ""
    assert "needs a prior" in run(GIDM(evaluations=6, latent_share=1), observation).diverged


def test_phase_1_alone_stays_in_the_range_of_the_sampler(one, monkeypatch):
    monkeypatch.setattr(GIDM, "_phase_2", None)
    rebuilt = run(GIDM(preset="tuned", evaluations=12, latent_share=1, sampler_steps=2), one.observe(PlainDefense()))
    assert rebuilt.images.abs().max() <= 1


def test_a_small_budget_still_has_both_phases(one, monkeypatch):
    observation, spent = one.observe(PlainDefense()), []
    search = gidm.match
    monkeypatch.setattr(gidm, "match", lambda tasks, *more: spent.append(tasks[0].evaluations) or search(tasks, *more))
    run(GIDM(preset="tuned", evaluations=4, sampler_steps=2), observation)
    assert spent == [1, 3]


def test_gidm_plus_reports_no_timestep_that_it_did_not_learn(one):
    rebuilt = run(GIDMPlus(evaluations=2), one.observe(PrivateNoiseTimestep()))
    assert rebuilt.timesteps is None


def test_tuned_pixels_recover_an_image(one):
    observation = one.observe(PlainDefense())
    rebuilt = run(GIDM(preset="tuned", evaluations=80, latent_share=0), observation)
    assert psnr(rebuilt.images[0].clamp(-1, 1), one.victim.images[0]) > 30


def test_gidm_plus_finds_a_private_timestep_and_reports_its_noise():
    """On a preset. The toy's time embedding has four numbers, too few to distinguish a thousand timesteps."""
    model = resolve_model(Spec("tiny:trained"))
    scene = toy(size=16, batch=1)
    scene = dataclasses.replace(scene, network=build_network(model, 0), schedule=build_process(model))
    observation = scene.observe(PrivateNoiseTimestep())
    assert observation.timesteps is None and observation.noise is None
    rebuilt = run(GIDMPlus(evaluations=60, joint_share=0.9), observation)
    assert rebuilt.timesteps.tolist() == scene.victim.timesteps.tolist()
    assert rebuilt.noise.shape == scene.victim.noise.shape
    assert rebuilt.evaluations <= 60


def test_gidm_plus_does_not_start_from_the_truth():
    """Two clients with equal updates, but other noise and timesteps, get the same reconstruction."""
    first, second = toy(batch=1), toy(batch=1)
    second.victim.noise.add_(1)
    second.victim.timesteps.fill_(5)
    a, b = first.observe(PrivateNoiseTimestep()), second.observe(PrivateNoiseTimestep())
    b = dataclasses.replace(b, update=a.update)
    assert torch.equal(run(GIDMPlus(evaluations=6), a).images, run(GIDMPlus(evaluations=6), b).images)


def test_gidm_plus_uses_what_is_granted(one):
    observation = one.observe(PlainDefense())
    rebuilt = run(GIDMPlus(evaluations=80), observation)
    assert rebuilt.timesteps is None and rebuilt.noise is None
    assert psnr(rebuilt.images[0].clamp(-1, 1), one.victim.images[0]) > 30


def test_near_noise_is_near_and_discloses_its_error(one):
    observation = one.observe(NearNoise(std=1e-4))
    error = (observation.noise - one.victim.noise).std().item()
    assert error == pytest.approx(1e-4, rel=0.2)
    assert observation.public.disclosed_noise_error == 1e-4
    assert torch.equal(observation.timesteps, one.victim.timesteps)
    exact = one.observe(NearNoise(std=0)).noise
    assert torch.equal(exact, one.victim.noise) and exact.data_ptr() != one.victim.noise.data_ptr()
    assert NearNoise().public(Scenario()).disclosed == {"disclosed_noise_error"}


def test_near_noise_does_not_protect(one):
    """`test_attacks` runs the same search with the exact noise and asks for 40 dB."""
    rebuilt = run(DLG(evaluations=110), one.observe(NearNoise()))
    assert psnr(rebuilt.images[0].clamp(-1, 1), one.victim.images[0]) > 35


def test_prior_samples_ignore_the_update(one):
    observation = one.observe(PlainDefense())
    other = dataclasses.replace(observation, update={name: -value for name, value in observation.update.items()})
    a, b = run(PriorSample(steps=3), observation), run(PriorSample(steps=3), other)
    assert torch.equal(a.images, b.images) and a.evaluations == 0
    assert not torch.equal(a.images, run(PriorSample(steps=3), observation, seed=4).images)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (GIDM, {"evaluations": 0}),
        (GIDM, {"latent_share": 1.5}),
        (GIDM, {"sampler_steps": 0}),
        (GIDMPlus, {"evaluations": 1}),
        (GIDMPlus, {"joint_share": 1.0}),
        (GIDMPlus, {"lr": 0.0}),
        (PriorSample, {"steps": 0}),
        (NearNoise, {"std": -1.0}),
    ],
)
def test_values_out_of_range_are_refused(cls, fields):
    with pytest.raises(ValueError, match=next(iter(fields)).split("_")[-1]):
        cls(**fields)
