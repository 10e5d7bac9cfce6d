"""Checks a diffusers directory that other people wrote, before anything runs with it, and loads its network.

`inspect` reads the small files: the class of the network, the pipeline and the noise process. `load` reads the weights. It
checks that the files hold every tensor of the network, with the right shape and finite values. It also checks that one forward
pass gives an image. Both refuse everything else with one sentence. Without these checks, a missing tensor could be
uninitialised memory under the name of a trained model.
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
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.family import CHANNELS, SIZES, Family, families
from benchmark.diffusion.schedulers import MAX_STEPS, SCHEDULERS, unknown_settings

if TYPE_CHECKING:
    from diffusers import ModelMixin

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that DDP, torch.compile, FSDP and activation checkpointing insert into the names of a network's tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of the small files of a diffusers directory.

    Attributes:
        family: family of the network.
        config: file with the network's configuration.
        weights: files with the network's tensors.
        scheduler: file with the noise process, or None.
        steps: number of timesteps T of that process, or None.
        ignored: settings in the two configurations that diffusers does not know, and so ignores.
        image_size: side of the square images, in pixels.
        stride: downsampling factor of the lowest resolution; sides of images are multiples of it.
    """

    family: Family
    config: Path
    weights: tuple[Path, ...]
    scheduler: Path | None
    steps: int | None
    ignored: tuple[str, ...]
    image_size: int
    stride: int


def inspect(path: Path, what: str) -> Checkpoint:
    """Read and check the small files of a diffusers directory.

    Args:
        path: directory of a pipeline, or of its network alone.
        what: name of the model in error messages.

    Raises:
        UserError: a file cannot be read, the network's family is unknown, the network does not map images to images, the
            process is unknown, or the files of the weights are missing.
    """
    known = families()
    parts = [family.denoiser.part for family in known.values()]
    path = path.resolve()
    path = path.parent if path.name in parts else path
    directory = next((path / part for part in parts if (path / part).is_dir()), path)
    _check_pipeline(path / "model_index.json", what)
    config = directory / "config.json"
    values = read_object(config, what)
    family = known.get(str(values.get("_class_name")))
    if family is None:
        raise UserError(f"{what} is a {shown(values.get('_class_name'))}, not a diffusers {' or '.join(known)}")
    size, stride = family.size(values, what)
    candidates = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((file for file in candidates if file.is_file()), None)
    process = read_object(scheduler, what) if scheduler else None
    steps = _timestep_count(process, what) if process else None
    ignored = (*unknown_settings(values), *(unknown_settings(process) if process else ()))
    return Checkpoint(family, config, _weight_files(directory, what), scheduler, steps, ignored, size, stride)


def read_object(path: Path, what: str) -> dict[str, object]:
    """Return the JSON object in a file; `what` names the model in error messages.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    content = parse_json(read_text(path, what), f"{what}: {path.name}")
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no JSON object")
    return content


def load(checkpoint: Checkpoint, times: Tensor, what: str) -> Denoiser:
    """Return the network with its weights as float32, in evaluation mode, on the CPU.

    Args:
        checkpoint: the result of `inspect` for the directory.
        times: (T,) input of the network for each timestep.
        what: name of the model in error messages.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape or not finite, or a forward pass fails.
    """
    network = _network_without_weights(checkpoint, what)
    wanted = network.state_dict()
    tensors = _by_current_name(_read_tensors(checkpoint.weights, what), set(wanted), checkpoint.family, what)
    _check_tensors({name: tensor.shape for name, tensor in tensors.items()}, {n: t.shape for n, t in wanted.items()}, what)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{what} cannot be used: tensor '{name}' holds values that are not finite numbers")
    network.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, assign=True)
    denoiser = checkpoint.family.denoiser(network, times)
    _check_forward(denoiser, checkpoint, what)
    return denoiser


def _check_pipeline(file: Path, what: str) -> None:
    if not file.is_file():
        return
    values = read_object(file, what)
    members = {name for name, value in values.items() if not name.startswith("_") and value not in (None, [None, None])}
    members = {name for name in members if isinstance(values[name], list)}  # settings of the pipeline are not lists
    if other := sorted(members - {"scheduler", *(family.denoiser.part for family in families().values())}):
        raise UserError(
            f"{what} is part of a {shown(values.get('_class_name'))}; its part {shown(other[0])} encodes images, so the "
            "network does not see pixels, and only networks on pixels are supported"
        )


def _timestep_count(config: Mapping[str, object], what: str) -> int:
    """Return the number of timesteps in a scheduler's configuration; refuse schedulers of unknown processes."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise UserError(
            f"{what} has the scheduler {shown(name)}, whose process is not known to be the process of DDPM "
            "(supported are DDPMScheduler, DDIMScheduler, other samplers of DDPM networks, and FlowMatchEulerDiscreteScheduler)"
        )
    if config.get("use_flow_sigmas"):
        raise UserError(f"{what} has a scheduler with use_flow_sigmas; save a FlowMatchEulerDiscreteScheduler instead")
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(f"{what} has a scheduler in continuous time; that is not supported")
    steps = config.get("num_train_timesteps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= MAX_STEPS:
        raise UserError(
            f"{what} should say its number of timesteps (num_train_timesteps, from 2 to {MAX_STEPS}), not {shown(steps)}"
        )
    return steps


def _weight_files(directory: Path, what: str) -> tuple[Path, ...]:
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    if (directory / INDEX).is_file():
        return _shards(directory, what)
    present = sorted(
        file.name for file in directory.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    )
    if any(name.endswith(".safetensors") for name in present):
        found = next(name for name in present if name.endswith(".safetensors"))
        raise UserError(
            f"{what} has {found}, but the file must have the name {WEIGHTS}: save it under that name, without a variant"
        )
    pickles = f"; {present[0]} is a pickle, and pickled weights are never loaded" if present else ""
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


def _network_without_weights(checkpoint: Checkpoint, what: str) -> ModelMixin:
    """Return the network that config.json describes, on the meta device: its tensors have shapes but no values."""
    config = read_object(checkpoint.config, what)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return checkpoint.family.network(config)
    except Exception as error:
        raise UserError(f"{what} cannot be loaded: its config.json describes no network: {whole_message(error)}") from error


def _read_tensors(files: Sequence[Path], what: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors.torch import load_file

    for file in files:
        try:
            yield from load_file(file).items()
        except MemoryError:
            raise
        except Exception as error:
            raise UserError(f"{what} cannot be loaded: {file.name} is damaged: {whole_message(error)}") from error


def _by_current_name(tensors: Iterator[tuple[str, Tensor]], wanted: set[str], family: Family, what: str) -> dict[str, Tensor]:
    """Return the tensors by the network's current names, without the parts that wrappers insert."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        current_name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        current_name = current_name if current_name in wanted else family.renamed(current_name)
        if current_name in found:
            raise UserError(f"{what} cannot be loaded: its files hold tensor '{current_name}' twice")
        found[current_name] = tensor
    return found


def _check_tensors(found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], what: str) -> None:
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
def _check_forward(network: Denoiser, checkpoint: Checkpoint, what: str) -> None:
    """Run the network on one small image, and refuse it if the output is not a finite image of the same shape."""
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise UserError(f"{what} has tensors that are not saved in its files, which is not supported")
    side = min(checkpoint.image_size, max(SIZES[0], 2 * checkpoint.stride))
    x_t = torch.linspace(-1, 1, CHANNELS * side * side).reshape(1, CHANNELS, side, side)
    try:
        prediction = network(x_t, torch.tensor([1]))
    except Exception as error:
        raise UserError(f"{what} cannot be used: a forward pass fails: {whole_message(error)}") from error
    if prediction.shape != x_t.shape:
        raise UserError(f"{what} cannot be used: from {list(x_t.shape)} a forward pass makes {list(prediction.shape)}")
    if not torch.isfinite(prediction).all():
        raise UserError(f"{what} cannot be used: a forward pass gives numbers that are not finite")
