import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from benchmark.base.errors import UserError
from benchmark.base.spec import Spec, expand, parse_one
from benchmark.clients.toy import toy
from benchmark.diffusion.catalogue import HUB_IDS, cached_directory, packaged_checkpoints
from benchmark.diffusion.conventions import BETA_SETTINGS
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.models import build_network, build_process, build_scheduler, resolve_model
from benchmark.diffusion.presets import PRESETS
from benchmark.diffusion.schedulers import read_process


@pytest.fixture
def directory(tmp_path):
    """A small U-Net as diffusers saves it, without a scheduler."""
    toy().network.unet.save_pretrained(tmp_path / "unet-alone")
    return tmp_path / "unet-alone"


@pytest.mark.parametrize(("name", "millions"), [("tiny", 0.702), ("small", 1.114), ("ddpm-cifar10", 35.746)])
def test_presets_have_the_size_that_they_state(name, millions):
    network = build_network(resolve_model(Spec(name)), 0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(millions * 1e6, rel=0.001)
    x = torch.zeros(2, 3, PRESETS[name].sample_size, PRESETS[name].sample_size)
    assert network(x, torch.tensor([0, 999])).shape == x.shape


def test_random_init_depends_on_the_seed_alone():
    model = resolve_model(Spec("tiny"))
    first, same, other = (build_network(model, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_preset_has_a_second_derivative_in_every_layer():
    for name in set(PRESETS) - {"wide-128", "ddpm-celebahq-256"}:  # as `small`, and minutes long
        model = resolve_model(Spec(name))
        network, schedule = build_network(model, 0), build_process(model)
        size = model.image_size
        x = torch.full((1, 3, size, size), 0.3, requires_grad=True)
        loss = training_loss(network, schedule, x, torch.tensor([200]), torch.full_like(x, 0.5))
        for gradient in parameter_gradient(network, loss, create_graph=True).values():
            assert gradient.requires_grad


def test_brackets_set_the_convention():
    model = resolve_model(expand(["tiny[prediction=v_prediction,steps=16]"])[0])
    schedule = build_process(model)
    assert (schedule.steps, schedule.prediction_type, model.steps) == (16, "v_prediction", 16)


def test_a_directory_with_its_scheduler_is_read_as_it_was_saved(directory):
    DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(directory)
    model = resolve_model(Spec(str(directory)))
    assert (model.image_size, model.steps, model.state) == (8, 50, "checkpoint")
    saved = UNet2DModel.from_pretrained(directory).state_dict()
    read = build_network(model, 0).unet.state_dict()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    assert build_process(model).prediction_type == "v_prediction"


def test_a_pipeline_directory_is_understood(tmp_path):
    toy().network.unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler(20).save_pretrained(tmp_path / "scheduler")
    assert resolve_model(Spec(str(tmp_path))).steps == 20


def test_without_a_scheduler_the_brackets_must_say_it(directory):
    with pytest.raises(UserError, match=r"no scheduler_config.json"):
        resolve_model(Spec(str(directory)))
    assert resolve_model(expand([f"{directory}[schedule=linear]"])[0]).steps == 1000


def test_pickled_weights_are_never_loaded(directory):
    weights = directory / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="pickled weights are never loaded"):
        resolve_model(expand([f"{directory}[steps=10]"])[0])


def test_damaged_weights_are_one_sentence(directory):
    (directory / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        build_network(resolve_model(expand([f"{directory}[steps=10]"])[0]), 0)
    assert "\n" not in str(error.value)


def test_another_class_of_model_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(UserError, match="UNet2DConditionModel"):
        resolve_model(Spec(str(directory)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("./nowhere", "no directory"),
        ("some/na--me", "no directory"),
        ("/no/such/place", "no directory"),
    ],
)
def test_an_unknown_model_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words):
        resolve_model(Spec(name))


@pytest.mark.parametrize("schedule", list(BETA_SETTINGS))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [16, 1000])
def test_every_schedule_falls_from_signal_to_noise(schedule, prediction, steps, tmp_path):
    model = resolve_model(parse_one(f"tiny[schedule={schedule},prediction={prediction},steps={steps}]"))
    found = build_process(model)
    alpha_bar = found.level
    assert (found.steps, found.prediction_type) == (steps, prediction)
    assert alpha_bar[0] > 0.9 and alpha_bar[-1] < 0.01 and (alpha_bar > 0).all() and (alpha_bar.diff() < 0).all()
    build_scheduler(model).save_pretrained(tmp_path)
    assert torch.equal(read_process(DDPMScheduler.from_pretrained(tmp_path)).level, alpha_bar)


def test_the_sigmoid_schedule_agrees_with_the_reference_code():
    """Check alpha_bar at t = 1 of T = 16, a value known from there."""
    schedule = build_process(resolve_model(parse_one("tiny[schedule=sigmoid,steps=16]")))
    assert schedule.level[1].item() == pytest.approx(0.947, abs=5e-4)


def test_the_linear_schedule_agrees_with_ho_et_al():
    schedule = build_process(resolve_model(parse_one("tiny")))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.allclose(schedule.level, (1 - betas).cumprod(0).float(), rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny:trained", "small:trained"])
def test_a_shipped_checkpoint_denoises_better_than_random_weights(name):
    from benchmark.datasets.photos import Photos

    trained = resolve_model(parse_one(name))
    random = resolve_model(parse_one(name.removesuffix(":trained")))
    images = torch.stack([picture.image for picture in Photos().public(trained.image_size)[:8]])
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    t = torch.arange(50, 850, 100)
    losses = [training_loss(build_network(m, 0), build_process(m), images, t, eps).item() for m in (trained, random)]
    assert losses[0] < 0.1 * losses[1]
    assert trained.state.startswith("trained ") and trained.state.endswith(" steps")
    assert (trained.prior_label, random.prior_label) == ("self", "none")


def test_the_shipped_checkpoints_are_small_and_record_their_command():
    total = sum(file.stat().st_size for path in packaged_checkpoints().values() for file in path.rglob("*") if file.is_file())
    assert total < 8e6
    for name, path in packaged_checkpoints().items():
        card = json.loads((path / "card.json").read_text())
        preset = name.removesuffix(":trained")
        assert f"train --dataset photos --model {preset} --steps {card['steps']} " in card["command"]
        assert (path / "samples.png").is_file() and card["environment"]["torch"]


@pytest.mark.parametrize("name", ["tiny:trained", "small:trained"])
def test_a_shipped_checkpoint_was_trained_only_on_public_photographs(name):
    from benchmark.datasets.photos import Photos
    from benchmark.diffusion.training import fingerprint

    model = resolve_model(parse_one(name))
    assert model.card["data"] == fingerprint(Photos().training(model.image_size))
    assert [(data.dataset, data.files) for data in model.trained_on()] == [("photos", Photos().fingerprint())]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tiny[prior=tiny:trained]", "tiny:trained"),
        ("tiny:trained[prior=self]", "self"),
        ("tiny:trained[prior=tiny:trained]", "self"),
        ("tiny:trained[prior=none]", "none"),
    ],
)
def test_the_prior_is_named_in_the_brackets(name, label):
    model = resolve_model(parse_one(name))
    assert model.prior_label == label
    assert model.prior is None or model.prior.files[0].parent.parent == packaged_checkpoints()["tiny:trained"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small[prior=tiny:trained]", "32x32 images, its prior 'tiny:trained' for 16x16"),
        ("tiny[prior=tiny]", "untrained"),
        ("tiny[prior=self]", "untrained"),
        ("tiny[prior=tinny]", "did you mean 'tiny'"),
        ("small:traned", "did you mean 'small:trained'"),
    ],
)
def test_a_prior_that_does_not_fit_is_one_sentence(name, words):
    with pytest.raises(UserError, match=words) as error:
        resolve_model(parse_one(name))
    assert "\n" not in str(error.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache that holds one small model under a hub id."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--faces"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    toy().network.unet.save_pretrained(snapshot)
    DDPMScheduler(20).save_pretrained(snapshot)
    return snapshot


def test_a_hub_id_is_read_from_the_local_cache(hub):
    model = resolve_model(parse_one("someone/faces"))
    assert (model.files[0].parent, model.image_size, model.steps) == (hub, 8, 20)
    assert sum(p.numel() for p in build_network(model, 0).parameters()) > 0


def test_a_hub_id_that_is_not_there_says_how_to_get_it(hub):
    assert all(cached_directory(name) is None for name in HUB_IDS)
    with pytest.raises(UserError, match="hf download google/ddpm-cifar10-32"):
        resolve_model(parse_one("google/ddpm-cifar10-32"))
