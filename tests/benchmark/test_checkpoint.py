"""Tests of checkpoints: refused in one sentence, or loaded as exactly the network in the files."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from benchmark.base.errors import UserError
from benchmark.base.spec import Spec, parse_one
from benchmark.cli import main
from benchmark.clients.toy import toy
from benchmark.diffusion.models import build_network, build_process, resolve_model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def unet(**fields):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        small = dict(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4)
        blocks = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
        return UNet2DModel(**{**small, **blocks, **fields})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "good"
    unet().save_pretrained(path / "unet")
    DDPMScheduler(20).save_pretrained(path / "scheduler")
    return path


@pytest.fixture
def model(saved, tmp_path):
    """A pipeline's directory that each test damages."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def tensors(model, change):
    save_file(dict(change(load_file(model / WEIGHTS))), model / WEIGHTS)


def used(model):
    """What every entry point does before it runs anything."""
    chosen = resolve_model(Spec(str(model)))
    return build_network(chosen, 0), build_process(chosen)


def refused(model, words):
    with pytest.raises(UserError, match=words) as error:
        used(model)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def exactly(model):
    """The weights of the directory's files, and the weights that are used."""
    network, _ = used(model)
    return load_file(model / WEIGHTS), network.unet.state_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "conv_out.bias"}, "lack 1 of the network's .* 'conv_out.bias'"),
        (lambda t: dict(list(t.items())[:1]), "saved incompletely, or config.json describes another network"),
        (lambda t: {f"teacher.{k}": v for k, v in t.items()}, "lack"),
        (lambda t: {**t, "more.weight": torch.zeros(3)}, "1 tensors that the network of config.json does not have"),
        (lambda t: {**t, "conv_in.bias": torch.zeros(5)}, r"'conv_in.bias' has the shape \[5\] in its file and \[4\]"),
        (lambda t: {**t, "conv_in.bias": t["conv_in.bias"] * torch.nan}, "'conv_in.bias' holds values that are not finite"),
        (lambda t: {**t, "conv_in.bias": t["conv_in.bias"] + torch.inf}, "not finite"),
        (lambda t: {**t, "conv_in.bias": torch.zeros(4, dtype=torch.int8)}, "not finite numbers"),
        (lambda t: {**t, "module.conv_in.bias": torch.zeros(4)}, "'conv_in.bias' twice"),
        (lambda t: {k: v * 1e30 for k, v in t.items()}, "a forward pass gives numbers that are not finite"),
    ],
)
def test_tensors_that_are_not_the_network_are_refused(model, change, words):  # F1
    tensors(model, change)
    refused(model, words)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_the_prefixes_of_known_wrappers_are_stripped(model, prefix):  # F1
    before, _ = exactly(model)
    tensors(model, lambda t: {f"{prefix}{k}": v for k, v in t.items()})
    after = used(model)[0].unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_accepted_is_loaded_to_the_bit(model):
    before, after = exactly(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not used(model)[0].training


def test_attention_layers_under_their_old_names_are_loaded(model):
    """As google's checkpoints of DDPM have them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before, _ = exactly(model)

    def renamed(name):
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        return name

    tensors(model, lambda t: {renamed(k): v for k, v in t.items()})
    assert any(".query." in name for name in load_file(model / WEIGHTS))
    after = used(model)[0].unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precision_is_loaded_as_float32(model):
    tensors(model, lambda t: {k: v.half() for k, v in t.items()})
    assert all(p.dtype == torch.float32 for p in used(model)[0].parameters())


def test_shards_are_loaded_and_lead_nowhere_else(model):  # T10
    before, _ = exactly(model)
    (model / WEIGHTS).unlink()
    unet().save_pretrained(model / "unet", max_shard_size="5KB")
    assert len(list((model / "unet").glob("*-of-*.safetensors"))) > 1
    after = used(model)[0].unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map={"conv_in.bias": "../../other.safetensors"})
    refused(model, "names '../../other.safetensors', which is no safetensors file beside it")
    edit(index, weight_map={"conv_in.bias": "gone.safetensors"})
    refused(model, "names gone.safetensors, which is not there")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "diffusion_pytorch_model.fp16.safetensors",
            "has diffusion_pytorch_model.fp16.safetensors, but the file must have the name",
        ),
        ("model.safetensors", "has model.safetensors, but the file must have the name diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.bin", "pickled weights are never loaded"),
    ],
)
def test_weights_under_another_name_say_which_name_is_wanted(model, name, words):  # T10
    (model / WEIGHTS).rename(model / "unet" / name)
    refused(model, words)


@pytest.mark.parametrize(
    "name", ["FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler", "ScoreSdeVeScheduler", "LCMScheduler", "Nonsense", None]
)
def test_a_process_that_is_not_ddpms_is_refused(model, name):  # F2
    edit(model / "scheduler" / "scheduler_config.json", _class_name=name)
    refused(model, "whose process is not known to be the process of DDPM")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_read_with_its_shift(model, shift):
    FlowMatchEulerDiscreteScheduler(20, shift=shift).save_pretrained(model / "scheduler")
    network, process = used(model)
    expected = torch.arange(1, 21) / 20
    expected = shift * expected / (1 + (shift - 1) * expected)
    torch.testing.assert_close(process.noise, expected)
    torch.testing.assert_close(network.times, 20 * expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting; that is not supported"),
        ({"invert_sigmas": True}, "invert_sigmas; that is not supported"),
        ({"shift": float("nan")}, "1 - sigma is not finite"),
        ({"shift": -1.0}, "1 - sigma"),
        ({"shift": 1e9}, "1 - sigma is 0 before its end"),
        ({"shift": "x"}, "a scheduler that cannot be used"),
        ({"num_train_timesteps": 1}, "num_train_timesteps, from 2 to 100000"),
    ],
)
def test_flow_matching_that_is_none_is_refused(model, changes, words):
    FlowMatchEulerDiscreteScheduler(20).save_pretrained(model / "scheduler")
    edit(model / "scheduler" / "scheduler_config.json", **changes)
    refused(model, words)


def test_a_learned_time_embedding_cannot_be_fed_what_flow_matching_feeds(model):
    unet(time_embedding_type="learned", num_train_timesteps=20).save_pretrained(model / "unet")
    used(model)
    FlowMatchEulerDiscreteScheduler(20).save_pretrained(model / "scheduler")
    refused(model, "a forward pass fails")


def test_the_process_beside_a_unet_is_read_from_the_unets_own_folder_too(model, monkeypatch):  # F2, F3
    edit(model / "scheduler" / "scheduler_config.json", _class_name="FlowMatchHeunDiscreteScheduler")
    refused(model / "unet", "whose process is not known to be the process of DDPM")
    monkeypatch.chdir(model / "unet")
    with pytest.raises(UserError, match="whose process is not known"):
        resolve_model(parse_one("./[prediction=epsilon]"))


def test_a_sampler_in_continuous_time_is_refused(model):  # F2
    changes = {"timestep_type": "continuous", "sigma_max": 700, "prediction_type": "v_prediction"}
    edit(model / "scheduler" / "scheduler_config.json", _class_name="EulerDiscreteScheduler", **changes)
    refused(model, "in continuous time")


def test_flow_sigmas_in_a_sampler_of_ddpm_are_refused(model):  # F2
    edit(model / "scheduler" / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True)
    refused(model, "save a FlowMatchEulerDiscreteScheduler instead")


def test_a_sampler_of_ddpm_gives_the_schedule_that_it_was_trained_with(model):
    EulerDiscreteScheduler(20, beta_schedule="squaredcos_cap_v2").save_pretrained(model / "scheduler")
    expected = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert torch.equal(used(model)[1].level, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_end": float("inf")}, "alpha_bar"),
        ({"beta_end": float("nan")}, "alpha_bar is not finite"),
        ({"beta_start": -1.0}, "alpha_bar does not fall"),
        ({"trained_betas": [0.1, 2.0, *[0.1] * 18]}, "alpha_bar does not fall"),
        ({"trained_betas": [0.1, 1.0, *[0.1] * 18]}, "alpha_bar is 0 before its end"),
        ({"trained_betas": [0.1, 0.2]}, "2 betas for 20 timesteps"),
        ({"trained_betas": 0.1}, "1 betas for 20 timesteps"),
        ({"beta_schedule": "wavy"}, "a scheduler that cannot be used"),
        ({"prediction_type": "score"}, "prediction type 'score'"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps, from 2 to 100000"),
        ({"num_train_timesteps": None}, "num_train_timesteps"),
    ],
)
def test_a_noise_schedule_that_is_none_is_refused(model, changes, words):  # F12
    edit(model / "scheduler" / "scheduler_config.json", **changes)
    refused(model, words)


@pytest.mark.parametrize(("prediction", "remarks"), [("epsilon", 1), ("v_prediction", 0)])
def test_zero_terminal_signal_is_allowed_and_remarked_where_noise_is_predicted(model, prediction, remarks):  # F12
    edit(model / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type=prediction)
    assert used(model)[1].level[-1] == 0
    assert len(resolve_model(Spec(str(model))).remarks) == remarks


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(in_channels=1, out_channels=1), "takes 1 channels, and images have 3"),
        (dict(num_class_embeds=10), "conditional on a class"),
        (dict(out_channels=6), r"gives 6 channels \(it learns the variance\)"),
        (dict(time_embedding_type="fourier"), "in continuous time"),
    ],
)
def test_a_network_that_is_not_from_images_to_images_is_refused(model, fields, words):  # F9
    unet(**fields).save_pretrained(model / "unet")
    refused(model, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": [8, 16]}, r"'conv_in.weight' has the shape \[4, 3, 3, 3\] in its file and \[8, 3, 3, 3\]"),
        ({"layers_per_block": 2}, "lack"),
        ({"norm_num_groups": 3}, r"config.json describes no network: num_channels \(4\) must be divisible by"),
        ({"down_block_types": ["Nonsense", "DownBlock2D"]}, "config.json describes no network: Nonsense does not exist"),
        ({"block_out_channels": [10**7, 8]}, "block_out_channels is 10000000, larger than the limit of 65536"),
        ({"block_out_channels": 3}, "block_out_channels"),
        ({"layers_per_block": 10**5}, "layers_per_block"),
        ({"layers_per_block": 1000}, "layers_per_block should be from 1 to 64"),
        ({"sample_size": [8, 16]}, r"square image size .* not \[8, 16\]"),
        ({"sample_size": 7}, "from 8 to 1024"),
        ({"sample_size": {"height": 8}}, "square image size"),
        ({"sample_size": True}, "from 8 to 1024"),
        ({"sample_size": 9}, "2-fold downsampling does not divide"),
    ],
)
def test_a_configuration_that_does_not_fit_says_the_reason(model, changes, words):  # F17
    edit(model / "unet" / "config.json", **changes)
    refused(model, words)


@pytest.mark.parametrize("place", ["", "unet"])
def test_a_member_of_a_latent_pipeline_is_refused(model, place):  # F3
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    (model / "model_index.json").write_text(json.dumps(index))
    refused(model / place, "part of a 'LDMPipeline'; its part 'vqvae'")


def test_a_pipeline_on_pixels_is_read(model):
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (model / "model_index.json").write_text(json.dumps({**index, "safety_checker": [None, None]}))
    used(model)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "card.json", "model_index.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", "{", '{"a": 1, "a": 2}', "\x00", "9" * 5000])
def test_small_files_that_are_no_object_are_one_sentence(model, file, text):  # T6
    (model / file).write_text(text)
    refused(model, "JSON|nests")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_damaged_weights_name_their_file(model, content):
    (model / WEIGHTS).write_bytes(content)
    refused(model, "diffusion_pytorch_model.safetensors is damaged")


def test_every_entry_point_refuses_before_it_runs(model, tmp_path, capsys):
    edit(model / "scheduler" / "scheduler_config.json", num_train_timesteps=1000)
    tensors(model, lambda t: {k: v for k, v in t.items() if not k.startswith("conv_out.")})
    run = ["run", "--grid", "smoke", "--attacks", "dlg", "--defenses", "none", "--out", str(tmp_path / "out")]
    for words in (
        [*run, "--models", str(model)],
        [*run, "--models", str(model), "--dry-run"],
        ["train", "--dataset", "photos", "--model", str(model), "--steps", "1", "--out", str(tmp_path / "out")],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "lack 2 of the network's" in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_prior_is_checked_like_the_model(model):
    tensors(model, lambda t: {k: v for k, v in t.items() if k != "conv_out.bias"})
    prior = resolve_model(parse_one(f"{toy_model(model)}[prior={model}]")).prior
    with pytest.raises(UserError, match="lack"):
        build_network(prior, 0)


def toy_model(model):
    place = model.parent / "attacked"
    toy().network.unet.save_pretrained(place / "unet")
    DDPMScheduler(20).save_pretrained(place / "scheduler")
    return place
