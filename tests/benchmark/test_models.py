import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from benchmark.contract import toy
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_schedule, resolve
from benchmark.diffusion.presets import PRESETS
from benchmark.errors import UserError
from benchmark.spec import Spec, expand


@pytest.fixture
def directory(tmp_path):
    """A small U-Net as diffusers saves it, without a scheduler."""
    toy().network.unet.save_pretrained(tmp_path / "unet-alone")
    return tmp_path / "unet-alone"


@pytest.mark.parametrize(("name", "millions"), [("tiny", 0.70), ("small", 1.11)])
def test_presets_have_the_size_that_they_state(name, millions):
    network = build_network(resolve(Spec(name)), 0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.01)
    x = torch.zeros(2, 3, PRESETS[name].image_size, PRESETS[name].image_size)
    assert network(x, torch.tensor([0, 999])).shape == x.shape


def test_random_init_depends_on_the_seed_alone():
    model = resolve(Spec("tiny"))
    first, same, other = (build_network(model, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_preset_has_a_second_derivative_in_every_layer():
    for name in PRESETS:
        model = resolve(Spec(name))
        network, schedule = build_network(model, 0), build_schedule(model)
        size = model.image_size
        x = torch.full((1, 3, size, size), 0.3, requires_grad=True)
        loss = training_loss(network, schedule, x, torch.tensor([200]), torch.full_like(x, 0.5))
        for gradient in parameter_gradient(network, loss, create_graph=True).values():
            assert gradient.requires_grad


def test_brackets_set_the_convention():
    model = resolve(expand(["tiny[prediction=v_prediction,steps=16]"])[0])
    schedule = build_schedule(model)
    assert (schedule.steps, schedule.prediction_type, model.steps) == (16, "v_prediction", 16)


def test_a_directory_with_its_scheduler_is_read_as_it_was_saved(directory):
    DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(directory)
    model = resolve(Spec(str(directory)))
    assert (model.image_size, model.steps, model.state) == (8, 50, "checkpoint")
    saved = UNet2DModel.from_pretrained(directory).state_dict()
    read = build_network(model, 0).unet.state_dict()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    assert build_schedule(model).prediction_type == "v_prediction"


def test_a_pipeline_directory_is_understood(tmp_path):
    toy().network.unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler(20).save_pretrained(tmp_path / "scheduler")
    assert resolve(Spec(str(tmp_path))).steps == 20


def test_without_a_scheduler_the_brackets_must_say_it(directory):
    with pytest.raises(UserError, match=r"no scheduler_config.json"):
        resolve(Spec(str(directory)))
    assert resolve(expand([f"{directory}[schedule=linear]"])[0]).steps == 1000


def test_pickled_weights_are_never_loaded(directory):
    weights = directory / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="pickled weights are never loaded"):
        resolve(expand([f"{directory}[steps=10]"])[0])


def test_damaged_weights_are_one_sentence(directory):
    (directory / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        build_network(resolve(expand([f"{directory}[steps=10]"])[0]), 0)
    assert "\n" not in str(error.value)


def test_another_class_of_model_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="UNet2DConditionModel"):
        resolve(Spec(str(directory)))


@pytest.mark.parametrize(("name", "words"), [("tinny", "did you mean 'tiny'"), ("./nowhere", "no directory")])
def test_an_unknown_model_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words):
        resolve(Spec(name))
