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
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import cosine_distance, squared_distance
from benchmark.scenario import Scenario


@pytest.fixture
def one():
    return toy(batch=1)


def run(attack, seen, seed=3):
    (rebuilt,) = attack.run([seen], stream(seed, "attack"))
    return rebuilt


def matching_loss(seen, images):
    update = guessed_update(seen, images)
    return sum((update[name] - value).square().sum().item() for name, value in seen.update.items())


def guessed_update(seen, images):
    loss = training_loss(seen.network, seen.schedule, images, seen.timesteps, seen.noise)
    return parameter_gradient(seen.network, loss, create_graph=True)


def test_defaults_are_those_of_the_reference_code():
    assert GIDM() == GIDM(preset="reference", evaluations=2501 + 5001, latent_share=None, sampler_steps=None)
    reference = gidm.PRESETS["reference"]
    assert round(reference.latent_share * GIDM().evaluations) == 2501
    assert (reference.search.func, reference.search.keywords) == (adam, {"lr": 0.01})
    assert reference.latent_distance is squared_distance
    assert (reference.sampler_steps, reference.start) == (16, "gaussian")


def test_the_other_defaults_are_those_that_are_stated():
    tuned = gidm.PRESETS["tuned"]
    assert (tuned.search, tuned.latent_distance, tuned.latent_share) == (lbfgs, cosine_distance, 0.1)
    assert (tuned.sampler_steps, tuned.start) == (16, "flat")
    assert GIDMPlus() == GIDMPlus(evaluations=1000, joint_share=0.4, lr=0.05, timestep_lr=0.3)
    assert PriorSample() == PriorSample(steps=50)
    assert NearNoise() == NearNoise(std=1e-4)


@pytest.mark.parametrize("preset", ["reference", "tuned"])
def test_phase_2_never_worsens_the_matching_loss(one, preset):
    seen = one.observe(PlainDefense())
    short = {"preset": preset, "sampler_steps": 3}
    phase_1 = run(GIDM(evaluations=4, latent_share=1, **short), seen)
    both = run(GIDM(evaluations=16, latent_share=0.25, **short), seen)
    assert phase_1.evaluations == 4 and both.evaluations == 16
    assert both.loss <= matching_loss(seen, phase_1.images) * (1 + 1e-5)
    assert both.loss == pytest.approx(matching_loss(seen, both.images), rel=1e-4)


def test_phase_1_gives_an_image_of_the_sampler_and_phase_2_leaves_it(one):
    seen = one.observe(PlainDefense())
    phase_1 = run(GIDM(evaluations=1, latent_share=1, sampler_steps=3), seen)
    z = torch.randn(seen.batch_shape, generator=stream(3, "attack"))
    assert torch.allclose(phase_1.images, ddim(seen.prior.network, seen.prior.schedule, z, 3))
    assert not torch.equal(run(GIDM(evaluations=9, latent_share=0.2, sampler_steps=3), seen).images, phase_1.images)


def test_the_prior_is_held_still_where_it_is_the_attacked_model_itself(one):
    """Were its weights those that the update is a gradient of, that gradient would run through the sampler, too."""
    seen = one.observe(PlainDefense())
    assert not any(p.requires_grad for p in seen.prior.network.parameters())
    theirs, granted = seen.prior.network.parameters(), seen.network.parameters()
    assert all(torch.equal(p, q) and p.data_ptr() != q.data_ptr() for p, q in zip(theirs, granted, strict=True))
    z = torch.randn(seen.batch_shape, generator=stream(0, "z")).requires_grad_()
    x_0 = ddim(seen.prior.network, seen.prior.schedule, z, 2)
    through = guessed_update(seen, x_0)
    plain = guessed_update(seen, x_0.detach())
    assert all(torch.allclose(through[name], plain[name]) for name in plain)
    unheld = guessed_update(seen, ddim(seen.network, seen.schedule, z, 2))
    assert not all(torch.allclose(unheld[name], plain[name]) for name in plain), "the test would notice"


def test_without_a_prior_phase_1_is_skipped_and_the_row_says_so(one):
    seen = dataclasses.replace(one.observe(PlainDefense()), prior=None)
    rebuilt = run(GIDM(evaluations=6), seen)
    assert rebuilt.evaluations == 6 and rebuilt.note == "phase 1 skipped: no prior is granted"
    assert run(GIDM(evaluations=6, latent_share=0), seen).note == ""
    assert "needs a prior" in run(GIDM(evaluations=6, latent_share=1), seen).diverged


def test_phase_1_alone_never_touches_a_pixel(one, monkeypatch):
    monkeypatch.setattr(GIDM, "_phase_2", None)
    rebuilt = run(GIDM(preset="tuned", evaluations=30, latent_share=1, sampler_steps=2), one.observe(PlainDefense()))
    assert rebuilt.images.abs().max() <= 1


def test_a_small_budget_still_has_both_phases(one, monkeypatch):
    seen, spent = one.observe(PlainDefense()), []
    search = gidm.match
    monkeypatch.setattr(gidm, "match", lambda tasks, *more: spent.append(tasks[0].evaluations) or search(tasks, *more))
    run(GIDM(preset="tuned", evaluations=4, sampler_steps=2), seen)
    assert spent == [1, 3]


def test_gidm_plus_names_no_timestep_where_it_learned_none(one):
    rebuilt = run(GIDMPlus(evaluations=2), one.observe(PrivateNoiseTimestep()))
    assert rebuilt.timesteps is None


def test_tuned_pixels_recover_an_image(one):
    seen = one.observe(PlainDefense())
    rebuilt = run(GIDM(preset="tuned", evaluations=120, latent_share=0), seen)
    assert psnr(rebuilt.images[0].clamp(-1, 1), one.victim.images[0]) > 30


def test_gidm_plus_finds_a_private_timestep_and_reports_its_noise():
    """On a preset: the toy's time embedding has four numbers, in which a thousand timesteps are not told apart."""
    model = resolve_model(Spec("tiny:trained"))
    scene = toy(size=16, batch=1)
    scene = dataclasses.replace(scene, network=build_network(model, 0), schedule=build_process(model))
    seen = scene.observe(PrivateNoiseTimestep())
    assert seen.timesteps is None and seen.noise is None
    rebuilt = run(GIDMPlus(evaluations=60, joint_share=0.9), seen)
    assert rebuilt.timesteps.tolist() == scene.victim.timesteps.tolist()
    assert rebuilt.noise.shape == scene.victim.noise.shape
    assert rebuilt.evaluations <= 60


def test_gidm_plus_starts_from_nothing_of_the_truth():
    """Two clients whose updates agree are attacked alike, whatever else differs between them."""
    first, second = toy(batch=1), toy(batch=1)
    second.victim.noise.add_(1)
    second.victim.timesteps.fill_(5)
    a, b = first.observe(PrivateNoiseTimestep()), second.observe(PrivateNoiseTimestep())
    b = dataclasses.replace(b, update=a.update)
    assert torch.equal(run(GIDMPlus(evaluations=6), a).images, run(GIDMPlus(evaluations=6), b).images)


def test_gidm_plus_uses_what_is_granted(one):
    seen = one.observe(PlainDefense())
    rebuilt = run(GIDMPlus(evaluations=120), seen)
    assert rebuilt.timesteps is None and rebuilt.noise is None
    assert psnr(rebuilt.images[0].clamp(-1, 1), one.victim.images[0]) > 30


def test_near_noise_is_near_and_says_how_near(one):
    seen = one.observe(NearNoise(std=1e-4))
    error = (seen.noise - one.victim.noise).std().item()
    assert error == pytest.approx(1e-4, rel=0.2)
    assert seen.public.disclosed_noise_error == 1e-4
    assert torch.equal(seen.timesteps, one.victim.timesteps)
    exact = one.observe(NearNoise(std=0)).noise
    assert torch.equal(exact, one.victim.noise) and exact.data_ptr() != one.victim.noise.data_ptr()
    assert NearNoise().public(Scenario()).disclosed == {"disclosed_noise_error"}


def test_near_noise_protects_no_more_than_none(one):
    close, exact = one.observe(NearNoise()), one.observe(PlainDefense())
    found = [psnr(run(DLG(evaluations=150), seen).images[0].clamp(-1, 1), one.victim.images[0]) for seen in (close, exact)]
    assert min(found) > 35


def test_prior_samples_read_nothing_of_the_update(one):
    seen = one.observe(PlainDefense())
    other = dataclasses.replace(seen, update={name: -value for name, value in seen.update.items()})
    a, b = run(PriorSample(steps=3), seen), run(PriorSample(steps=3), other)
    assert torch.equal(a.images, b.images) and a.evaluations == 0
    assert not torch.equal(a.images, run(PriorSample(steps=3), seen, seed=4).images)


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
