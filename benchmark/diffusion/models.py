"""The model axis: a U-Net architecture, a noise schedule with its prediction type, a state, and the prior that is granted.

A model is a preset at random init (`tiny`, `small[prediction=v_prediction]`), a preset's shipped checkpoint (`tiny:trained`), a
local diffusers directory (a path; `train` writes such), or the hub id of a model that is in the local Hugging Face cache.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmark.config import build
from benchmark.diffusion.catalogue import cached, shipped
from benchmark.diffusion.conventions import Convention
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.presets import PRESETS
from benchmark.diffusion.schedule import Schedule, from_scheduler
from benchmark.errors import UserError, first_line, unknown
from benchmark.seeds import seed
from benchmark.spec import Spec, one

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"
CARD = "card.json"


@dataclass(frozen=True)
class Model:
    """One value of the model axis, resolved but not yet built.

    Attributes:
        label: how it was asked for.
        image_size: side of the square images it is made for.
        stride: of its lowest resolution; sides of images are multiples of it.
        steps: number of timesteps T.
        convention: schedule and prediction type of a preset, None where the directory's own scheduler says it.
        preset: the name of its preset, or None.
        directory: the diffusers directory of its U-Net, or None.
        scheduler: the file with its scheduler's configuration, or None.
        card: what `train` wrote of how it was made, or None.
        prior: the trained model that an attack is granted as knowledge of images, None where it is granted none.
    """

    label: str
    image_size: int
    stride: int
    steps: int
    convention: Convention | None
    preset: str | None = None
    directory: Path | None = None
    scheduler: Path | None = None
    card: Mapping[str, object] | None = field(default=None, hash=False)
    prior: Model | None = None

    @property
    def state(self) -> str:
        """`random` for a random init, `trained N steps` where a card says so, else `checkpoint`."""
        if self.directory is None:
            return "random"
        return "checkpoint" if self.trained_steps is None else f"trained {self.trained_steps} steps"

    @property
    def trained_steps(self) -> int | None:
        """Training steps, those of the model that it began from among them; None where no card tells."""
        steps = (self.card or {}).get("steps")
        return steps if isinstance(steps, int) else None

    def trained_on(self) -> Iterator[tuple[str, str]]:
        """Name and fingerprint of each data set that its card, and those of the models that it began from, tell of."""
        card: object = self.card
        while isinstance(card, Mapping):
            yield str(card.get("dataset", "")), str(card.get("files", ""))
            card = card.get("base")

    @property
    def prior_label(self) -> str:
        """`none`, `self` where the prior is the attacked model, or the prior's own label."""
        if self.prior is None:
            return "none"
        return "self" if self.prior == dataclasses.replace(self, label=self.prior.label, prior=None) else self.prior.label


def resolve(spec: Spec) -> Model:
    """Find what a model's name means, reading small configuration files only.

    In its brackets, `prior` is `none`, `self` or another trained model. By default a trained model is its own prior, since its
    weights are granted anyway, and a random init has none.

    Raises:
        UserError: the name is no model, the model lacks what it needs, or the prior does not go with it.
    """
    chosen = [value for field, value in spec.params if field == "prior"]
    model = _resolve_alone(Spec(spec.name, tuple(pair for pair in spec.params if pair[0] != "prior")))
    prior = _resolve_prior(model, chosen[0] if chosen else "none" if model.directory is None else "self")
    return dataclasses.replace(model, label=str(spec), prior=prior)


def _resolve_prior(model: Model, name: str) -> Model | None:
    if name == "none":
        return None
    prior = model if name == "self" else _resolve_alone(one(name))
    if prior.directory is None:
        raise UserError(
            f"the prior of model '{model.label}' is untrained; a prior is none or a trained model, as small:trained"
        )
    if prior.image_size != model.image_size:
        raise UserError(
            f"model '{model.label}' is for {model.image_size}x{model.image_size} images, "
            f"its prior '{prior.label}' for {prior.image_size}x{prior.image_size}"
        )
    return prior


def _resolve_alone(spec: Spec) -> Model:
    if spec.name in PRESETS:
        convention = build(Convention, dict(spec.params), f"model '{spec.name}'")
        preset = PRESETS[spec.name]
        stride = _stride(preset.block_out_channels)
        return Model(str(spec), preset.sample_size, stride, convention.steps, convention, preset=spec.name)
    if spec.name in shipped():
        return _resolve_directory(spec, shipped()[spec.name])
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return _resolve_directory(spec, path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec.name):
        return _resolve_directory(spec, _cached(spec.name))
    if "/" in spec.name or spec.name.startswith("."):
        raise UserError(f"model '{spec.name}' is no directory")
    raise unknown("model", spec.name, [*PRESETS, *shipped()])


def _cached(hub_id: str) -> Path:
    path = cached(hub_id)
    if path is None:
        raise UserError(
            f"model '{hub_id}' is no directory, and no model of that name is in the Hugging Face cache of this machine; "
            f"'hf download {hub_id}' fetches it"
        )
    return path


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
    channels = config.get("block_out_channels")
    stride = _stride(channels if isinstance(channels, list) else [])
    candidates = (path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
    scheduler = next((file for file in candidates if file.is_file()), None)
    if scheduler and spec.params:
        raise UserError(f"model '{spec.name}' has its own scheduler ({scheduler.name}); leave out the brackets")
    if not scheduler and not spec.params:
        raise UserError(
            f"model '{spec.name}' has no scheduler_config.json: save its scheduler beside it, "
            f"or state how its client trains, as in '{spec.name}[prediction=epsilon,schedule=linear,steps=1000]'"
        )
    card = _read_json(path / CARD, f"model '{spec.name}'") if (path / CARD).is_file() else None
    if scheduler is None:
        convention = build(Convention, dict(spec.params), f"model '{spec.name}'")
        return Model(str(spec), size, stride, convention.steps, convention, directory=directory, card=card)
    steps = _read_json(scheduler, f"model '{spec.name}'").get("num_train_timesteps")
    if not isinstance(steps, int):
        raise UserError(f"model '{spec.name}' does not say its number of timesteps (num_train_timesteps in {scheduler})")
    return Model(str(spec), size, stride, steps, None, directory=directory, scheduler=scheduler, card=card)


def _stride(block_out_channels: Sequence[object]) -> int:
    """A U-Net halves the image between its resolutions."""
    return 1 << max(0, len(block_out_channels) - 1)


def build_scheduler(model: Model) -> DDPMScheduler:
    """The scheduler that the model's client trains with, as diffusers has it.

    Raises:
        UserError: the scheduler's file cannot be used.
    """
    from diffusers import DDPMScheduler

    if model.scheduler is None:
        assert model.convention is not None
        return model.convention.scheduler()
    config = _read_json(model.scheduler, f"model '{model.label}'")
    try:
        return DDPMScheduler.from_config(config)
    except Exception as error:
        raise UserError(f"model '{model.label}' has a scheduler that cannot be used: {first_line(error)}") from error


def build_schedule(model: Model) -> Schedule:
    """The schedule that the model's client trains with, on the CPU.

    Raises:
        UserError: the scheduler's file cannot be used.
    """
    try:
        return from_scheduler(build_scheduler(model))
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
            unet = UNet2DModel.from_pretrained(
                model.directory, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:
            raise UserError(f"model '{model.label}' cannot be loaded: {first_line(error)}") from error
        return Denoiser(unet)
    assert model.preset is not None
    architecture = dataclasses.asdict(PRESETS[model.preset])
    del architecture["summary"]
    with torch.random.fork_rng(devices=[]):  # layers draw their init from the global state, which is put back
        torch.default_generator.manual_seed(seed(base_seed, "model", model.preset))
        unet = UNet2DModel(**architecture)
    return Denoiser(unet)


def _read_json(path: Path, what: str) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: cannot read {path} ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no JSON object")
    return content
