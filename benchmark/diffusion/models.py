"""The model axis: a U-Net architecture, a noise schedule with its prediction type, and a state.

A model is a preset at random init (`tiny`, `small[prediction=v_prediction]`) or a local diffusers directory (a path).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmark.config import build
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.presets import PRESETS
from benchmark.diffusion.schedule import PredictionType, Schedule, from_scheduler
from benchmark.errors import UserError, first_line, unknown
from benchmark.seeds import seed
from benchmark.spec import Spec

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Convention:
    """How the client trains, where the model does not say: settable as `tiny[prediction=v_prediction]`.

    Attributes:
        prediction: what the network predicts.
        schedule: diffusers' name of the beta schedule (`squaredcos_cap_v2` is the cosine one).
        steps: number of timesteps T.
    """

    prediction: PredictionType = "epsilon"
    schedule: Literal["linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class Model:
    """One value of the model axis, resolved but not yet built.

    Attributes:
        label: how it was asked for.
        image_size: side of the square images it is made for.
        steps: number of timesteps T.
        convention: schedule and prediction type of a preset, None where the directory's own scheduler says it.
        preset: the name of its preset, or None.
        directory: the diffusers directory of its U-Net, or None.
        scheduler: the file with its scheduler's configuration, or None.
    """

    label: str
    image_size: int
    steps: int
    convention: Convention | None
    preset: str | None = None
    directory: Path | None = None
    scheduler: Path | None = None

    @property
    def state(self) -> str:
        """`random` for a random init, `checkpoint` for weights that were read from disk."""
        return "random" if self.directory is None else "checkpoint"


def resolve(spec: Spec) -> Model:
    """Find what a model's name means, reading small configuration files only.

    Raises:
        UserError: the name is no preset and no directory, or the directory lacks what a model needs.
    """
    if spec.name in PRESETS:
        convention = build(Convention, dict(spec.params), f"model '{spec.name}'")
        return Model(str(spec), PRESETS[spec.name].image_size, convention.steps, convention, preset=spec.name)
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return _resolve_directory(spec, path)
    if "/" in spec.name or spec.name.startswith("."):
        raise UserError(f"model '{spec.name}' is no directory")
    raise unknown("model", spec.name, PRESETS)


def _resolve_directory(spec: Spec, path: Path) -> Model:
    directory = path / "unet" if (path / "unet").is_dir() else path
    config = _read_json(directory / "config.json", f"model '{spec.name}'")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"model '{spec.name}' is a {config.get('_class_name')}, not a diffusers UNet2DModel")
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"model '{spec.name}' has no {WEIGHTS} (pickled weights are never loaded; save as safetensors)")
    size = config.get("sample_size")
    if not isinstance(size, int):
        raise UserError(f"model '{spec.name}' does not say its image size (sample_size in {directory / 'config.json'})")
    candidates = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((file for file in candidates if file.is_file()), None)
    if scheduler and spec.params:
        raise UserError(f"model '{spec.name}' has its own scheduler ({scheduler.name}); leave out the brackets")
    if not scheduler and not spec.params:
        raise UserError(
            f"model '{spec.name}' has no scheduler_config.json: save its scheduler beside it, "
            f"or state how its client trains, as in '{spec.name}[prediction=epsilon,schedule=linear,steps=1000]'"
        )
    if scheduler is None:
        convention = build(Convention, dict(spec.params), f"model '{spec.name}'")
        return Model(str(spec), size, convention.steps, convention, directory=directory)
    steps = _read_json(scheduler, f"model '{spec.name}'").get("num_train_timesteps")
    if not isinstance(steps, int):
        raise UserError(f"model '{spec.name}' does not say its number of timesteps (num_train_timesteps in {scheduler})")
    return Model(str(spec), size, steps, None, directory=directory, scheduler=scheduler)


def build_schedule(model: Model) -> Schedule:
    """The schedule that the model's client trains with, on the CPU.

    Raises:
        UserError: the scheduler's file cannot be used.
    """
    from diffusers import DDPMScheduler

    if model.scheduler is None:
        assert model.convention is not None
        convention = model.convention
        scheduler = DDPMScheduler(
            num_train_timesteps=convention.steps,
            beta_schedule=convention.schedule,
            prediction_type=convention.prediction,
        )
    else:
        config = _read_json(model.scheduler, f"model '{model.label}'")
        try:
            scheduler = DDPMScheduler.from_config(config)
        except Exception as error:
            raise UserError(f"model '{model.label}' has a scheduler that cannot be used: {first_line(error)}") from error
    try:
        return from_scheduler(scheduler)
    except ValueError as error:
        raise UserError(f"model '{model.label}': {error}") from error


def build_network(model: Model, base_seed: int) -> Denoiser:
    """The network with its weights, on the CPU: drawn from (`base_seed`, preset), or read from safetensors.

    Raises:
        UserError: the weights cannot be read.
    """
    from diffusers import UNet2DModel

    if model.directory is not None:
        try:
            unet = UNet2DModel.from_pretrained(model.directory, use_safetensors=True, local_files_only=True)
        except Exception as error:
            raise UserError(f"model '{model.label}' cannot be loaded: {first_line(error)}") from error
        return Denoiser(unet)
    assert model.preset is not None
    preset = PRESETS[model.preset]
    with torch.random.fork_rng(devices=[]):  # layers draw their init from the global state, which is put back
        torch.default_generator.manual_seed(seed(base_seed, "model", model.preset))
        unet = UNet2DModel(
            sample_size=preset.image_size,
            block_out_channels=preset.block_out_channels,
            down_block_types=preset.down_block_types,
            up_block_types=preset.up_block_types,
            layers_per_block=1,
            norm_num_groups=8,
        )
    return Denoiser(unet)


def _read_json(path: Path, what: str) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: cannot read {path} ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no JSON object")
    return content
