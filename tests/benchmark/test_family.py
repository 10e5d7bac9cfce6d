"""Tests that a second family of networks takes one file, which is enough to train, read and attack its models."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from benchmark.attacks.activations import Activations
from benchmark.attacks.constant_image import ConstantImage
from benchmark.attacks.dlg import DLG
from benchmark.attacks.gidm_plus import GIDMPlus
from benchmark.base.seeds import stream
from benchmark.base.spec import Spec
from benchmark.cli import main
from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, observe
from benchmark.clients.toy import PlainDefense
from benchmark.datasets.photos import Photos
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.diffusion import families
from benchmark.diffusion.models import build_network, build_process, resolve_model
from benchmark.evaluation.metrics import psnr
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters

SIZE = 8


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A model of the second family that `train` made from a random one."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "families")])
    monkeypatch.setattr("benchmark.datasets.photos.TRAINING_CROPS", 16)
    monkeypatch.setattr("benchmark.diffusion.training.SHEET_STEPS", 2)
    from benchmark.diffusion.families.convnet import ConvNet

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        ConvNet(SIZE).save_pretrained(tmp_path / "random" / "convnet")
    DDPMScheduler(20).save_pretrained(tmp_path / "random" / "scheduler")
    words = ["--dataset", "photos", "--model", str(tmp_path / "random"), "--batch-size", "4", "--steps", "3"]
    assert main(["train", *words, "--out", str(tmp_path / "trained")]) == 0
    return resolve_model(Spec(str(tmp_path / "trained")))


def observed(model, defense):
    network, schedule = build_network(model, 0), build_process(model)
    scenario = Scenario(batch_size=1, image_size=SIZE, timesteps=5)
    victim = draw_victim(Photos().victims(1, SIZE, stream(0, "victim")), scenario, schedule, stream(0, "noise"))
    trained = Round(network, schedule, victim, scenario)
    return victim, observe(
        trained,
        defense,
        AttackerKnowledge(network, torch.zeros(3), PublicParameters()),
        stream(0, "defense"),
        stream(0, "order"),
    )


def test_it_is_trained_and_attacked(trained):
    assert (trained.image_size, trained.stride, trained.state) == (SIZE, 1, "trained 3 steps")
    victim, observation = observed(trained, PlainDefense())
    assert set(observation.update) == {
        f"convnet.{layer}.{kind}" for layer in ("first", "time", "last") for kind in ("weight", "bias")
    }
    (found,), (floor,) = (attack.run([observation], stream(0, "attack")) for attack in (DLG(evaluations=100), ConstantImage()))
    quality, least = (psnr(rebuilt.images[0].clamp(-1, 1), victim.images[0]) for rebuilt in (found, floor))
    assert quality > least + 10


def test_without_landmarks_closed_forms_refuse_in_one_sentence(trained):
    _, private = observed(trained, PrivateNoiseTimestep())
    _, exposed = observed(trained, PlainDefense())
    (unread,), (inverted,) = (
        Activations(evaluations=4).run([observation], stream(0, "a")) for observation in (private, exposed)
    )
    assert unread.diverged.endswith("the network does not say which layers take the time embedding")
    assert inverted.note == "nothing could be inverted: the network does not say which layers its encoder has"


def test_a_network_that_mixes_no_embeddings_is_refused_by_relaxed_timesteps(trained):
    victims = [observed(trained, defense)[1] for defense in (PrivateNoiseTimestep(), PlainDefense())]
    private, exposed = GIDMPlus(evaluations=4).run(victims, stream(0, "a"))
    assert "does not mix time embeddings" in private.diverged and exposed.diverged is None
