"""A diffusers directory that somebody else wrote, checked as a whole before anything runs.

`inspect` reads the small files: the kind of network, the pipeline and the noise process. `load` reads the weights: every tensor
of the network is in the files, in its shape and finite, and one forward pass gives an image. Everything else is refused in one
sentence. Without these checks, a missing tensor would be uninitialised memory under the name of a trained model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmark.base.errors import UserError, shown, whole_message
from benchmark.base.parsing import parse_json, read_text
from benchmark.diffusion.process import MOST_STEPS, PROCESSES, quiet_diffusers, unknown_settings

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
CHANNELS = 3
SIZES = range(8, 1025)
"""Sides of images, in pixels."""

LARGEST_SETTING = 65_536
"""Of a whole number in config.json: more channels, layers or groups are a mistake."""

MOST_LAYERS = 64
"""Residual layers in a block, and resolutions: more are a mistake, and take minutes to build."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DDP, torch.compile, FSDP and activation checkpointing put into the names of a network's tensors."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an attention layer's parts before diffusers 0.13, as google's DDPM checkpoints have them."""

PIPELINE_MEMBERS = frozenset({"unet", "scheduler"})
"""What a pipeline that works on pixels consists of."""


@dataclass(frozen=True)
class Checkpoint:
    """What the small files of a directory say.

    Attributes:
        config: file with the network's configuration.
        weights: files with its tensors.
        scheduler: file with the noise process, or None.
        steps: number of timesteps T of that process, or None.
        ignored: settings in the two configurations that diffusers does not know, and so ignores.
        image_size: side of the square images.
        stride: of the lowest resolution; sides of images are multiples of it.
    """

    config: Path
    weights: tuple[Path, ...]
    scheduler: Path | None
    steps: int | None
    ignored: tuple[str, ...]
    image_size: int
    stride: int


def inspect(path: Path, what: str) -> Checkpoint:
    """Read a directory's small files.

    Args:
        path: a diffusers directory, of a pipeline or of its U-Net alone.
        what: names it in messages.

    Raises:
        UserError: it is no unconditional U-Net on the three channels of an image, or its process is not that of DDPM.
    """
    path = path.resolve()
    path = path.parent if path.name == "unet" else path
    directory = path / "unet" if (path / "unet").is_dir() else path
    _check_pipeline(path / "model_index.json", what)
    config = directory / "config.json"
    values = read_object(config, what)
    if values.get("_class_name") != "UNet2DModel":
        raise UserError(f"{what} is a {shown(values.get('_class_name'))}, not a diffusers UNet2DModel")
    _check_kind(values, what)
    size, lowest = _size(values, what), _stride(values, what)
    if size % lowest:
        raise UserError(f"{what} is for images of {size}x{size}, and its {lowest}-fold downsampling does not divide that")
    candidates = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((file for file in candidates if file.is_file()), None)
    process = read_object(scheduler, what) if scheduler else None
    steps = _steps(process, what) if process else None
    ignored = (*unknown_settings(values), *(unknown_settings(process) if process else ()))
    return Checkpoint(config, _weight_files(directory, what), scheduler, steps, ignored, size, lowest)


def read_object(path: Path, what: str) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    content = parse_json(read_text(path, what), f"{what}: {path.name}")
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no JSON object")
    return content


def load(checkpoint: Checkpoint, what: str) -> UNet2DModel:
    """Return the network with its weights as float32, in evaluation mode, on the CPU.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape or not finite, or the network does not run.
    """
    unet = _hollow(checkpoint, what)
    wanted = unet.state_dict()
    tensors = _named(_tensors(checkpoint.weights, what), set(wanted), what)
    _compare({name: tensor.shape for name, tensor in tensors.items()}, {n: t.shape for n, t in wanted.items()}, what)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{what} cannot be used: tensor '{name}' holds values that are not finite numbers")
    unet.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, assign=True)
    _run_once(unet, checkpoint, what)
    return unet


def _check_pipeline(file: Path, what: str) -> None:
    if not file.is_file():
        return
    values = read_object(file, what)
    members = {name for name, value in values.items() if not name.startswith("_") and value not in (None, [None, None])}
    members = {name for name in members if isinstance(values[name], list)}  # settings of the pipeline are no members
    if other := sorted(members - PIPELINE_MEMBERS):
        raise UserError(
            f"{what} is part of a {shown(values.get('_class_name'))}; its part {shown(other[0])} encodes images, so the "
            "network does not see pixels, and only networks on pixels are supported"
        )


def _steps(config: Mapping[str, object], what: str) -> int:
    """Return the number of timesteps of a scheduler's configuration, which has the process of DDPM."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in PROCESSES:
        raise UserError(
            f"{what} has the scheduler {shown(name)}, whose process is not known to be that of DDPM "
            "(DDPMScheduler, DDIMScheduler and other samplers of such networks are read)"
        )
    if config.get("use_flow_sigmas"):
        raise UserError(f"{what} has a scheduler with use_flow_sigmas: flow matching is not supported")
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(f"{what} has a scheduler in continuous time; that is not supported")
    steps = config.get("num_train_timesteps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= MOST_STEPS:
        raise UserError(
            f"{what} should say its number of timesteps (num_train_timesteps, from 2 to {MOST_STEPS}), not {shown(steps)}"
        )
    return steps


def _check_kind(values: Mapping[str, object], what: str) -> None:
    """Refuse a network that takes or gives something else than an image."""
    for name, meaning in (("in_channels", "takes"), ("out_channels", "gives")):
        channels = values.get(name, CHANNELS)
        if channels != CHANNELS:
            learned = " (it learns the variance)" if name == "out_channels" and channels == 2 * CHANNELS else ""
            raise UserError(f"{what} {meaning} {shown(channels)} channels{learned}, and images have {CHANNELS}")
    if values.get("num_class_embeds") is not None or values.get("class_embed_type") is not None:
        raise UserError(f"{what} is conditional on a class; only unconditional networks are supported")
    embedding = values.get("time_embedding_type", "positional")
    if embedding not in ("positional", "learned"):
        raise UserError(
            f"{what} has the time embedding {shown(embedding)}, of a process in continuous time; that is not supported"
        )
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > LARGEST_SETTING:
                raise UserError(f"{what}: {name} is {number}, which no network has")
    layers = values.get("layers_per_block", 2)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise UserError(f"{what}: layers_per_block should be from 1 to {MOST_LAYERS}, not {shown(layers)}")


def _size(values: Mapping[str, object], what: str) -> int:
    size = values.get("sample_size")
    side = size[0] if isinstance(size, list) and size and all(other == size[0] for other in size) else size
    if isinstance(side, bool) or not isinstance(side, int) or side not in SIZES:
        raise UserError(
            f"{what} does not say a square image size (sample_size in config.json, from {SIZES[0]} to {SIZES[-1]}), "
            f"but {shown(size)}"
        )
    return side


def _stride(values: Mapping[str, object], what: str) -> int:
    channels = values.get("block_out_channels")
    if not isinstance(channels, list) or not 1 <= len(channels) <= 10 or not all(type(c) is int and c > 0 for c in channels):
        raise UserError(f"{what} does not say the channels of 1 to 10 resolutions (block_out_channels), but {shown(channels)}")
    return stride(channels)


def stride(block_out_channels: Sequence[object]) -> int:
    """Return how much smaller the lowest resolution is: a U-Net halves the image between its resolutions."""
    return 1 << max(0, len(block_out_channels) - 1)


def _weight_files(directory: Path, what: str) -> tuple[Path, ...]:
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    if (directory / INDEX).is_file():
        return _shards(directory, what)
    there = sorted(file.name for file in directory.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"))
    if any(name.endswith(".safetensors") for name in there):
        found = next(name for name in there if name.endswith(".safetensors"))
        raise UserError(f"{what} has {found}, and {WEIGHTS} is wanted: save it under that name, without a variant")
    pickles = f"; {there[0]} is a pickle, and pickled weights are never loaded" if there else ""
    raise UserError(f"{what} has no {WEIGHTS}{pickles} (save it as safetensors)")


def _shards(directory: Path, what: str) -> tuple[Path, ...]:
    mapping = read_object(directory / INDEX, what).get("weight_map")
    names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(f"{what}: {INDEX} names {shown(name)}, which is no safetensors file beside it")
        if not (directory / name).is_file():
            raise UserError(f"{what}: {INDEX} names {name}, which is not there")
    if not names:
        raise UserError(f"{what}: {INDEX} names no file")
    return tuple(directory / name for name in names)


def _hollow(checkpoint: Checkpoint, what: str) -> UNet2DModel:
    """Return the network that config.json describes, with shapes and without numbers."""
    from diffusers import UNet2DModel

    config = read_object(checkpoint.config, what)
    try:
        with quiet_diffusers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            unet: UNet2DModel = UNet2DModel.from_config(config)
    except Exception as error:
        raise UserError(f"{what} cannot be loaded: its config.json describes no network: {whole_message(error)}") from error
    return unet.eval()


def _tensors(files: Sequence[Path], what: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors.torch import load_file

    for file in files:
        try:
            yield from load_file(file).items()
        except MemoryError:
            raise
        except Exception as error:
            raise UserError(f"{what} cannot be loaded: {file.name} is damaged: {whole_message(error)}") from error


def _named(tensors: Iterator[tuple[str, Tensor]], wanted: set[str], what: str) -> dict[str, Tensor]:
    """Return the tensors under the network's own names: without wrappers' prefixes, with today's names of attention layers."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        plain = plain if plain in wanted else _renamed(plain)
        if plain in found:
            raise UserError(f"{what} cannot be loaded: its files hold tensor '{plain}' twice")
        found[plain] = tensor
    return found


def _renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    parent, _, part = layer.rpartition(".")
    return f"{parent}.{OLD_ATTENTION[part]}.{kind}" if "attentions" in parent and part in OLD_ATTENTION else name


def _compare(found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], what: str) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise UserError(
            f"{what} cannot be loaded: its files lack {len(missing)} of the network's {len(wanted)} tensors, '{missing[0]}' "
            "among them; they were saved incompletely, or config.json describes another network"
        )
    if extra := [name for name in found if name not in wanted]:
        raise UserError(
            f"{what} cannot be loaded: its files hold {len(extra)} tensors that the network of config.json does not have, "
            f"{shown(extra[0])} among them; config.json describes another network"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{what} cannot be loaded: tensor '{name}' has the shape {list(found[name])} in its file and {list(shape)} in "
                "the network of config.json; one of the two files is of another network"
            )


@torch.no_grad()
def _run_once(unet: UNet2DModel, checkpoint: Checkpoint, what: str) -> None:
    """Refuse a network that gives no finite image for a small one."""
    if any(tensor.is_meta for tensor in (*unet.parameters(), *unet.buffers())):
        raise UserError(f"{what} has tensors that are not saved in its files, which is not supported")
    side = min(checkpoint.image_size, max(SIZES[0], 2 * checkpoint.stride))
    x_t = torch.linspace(-1, 1, CHANNELS * side * side).reshape(1, CHANNELS, side, side)
    try:
        prediction = unet(x_t, torch.tensor([1])).sample
    except Exception as error:
        raise UserError(f"{what} cannot be used: a forward pass fails: {whole_message(error)}") from error
    if prediction.shape != x_t.shape:
        raise UserError(f"{what} cannot be used: from {list(x_t.shape)} a forward pass makes {list(prediction.shape)}")
    if not torch.isfinite(prediction).all():
        raise UserError(f"{what} cannot be used: a forward pass gives numbers that are not finite")
