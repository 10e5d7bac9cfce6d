"""The model axis of a grid. A model is an architecture, a process, a state, and the prior that is granted to attacks.

There are four kinds of models:
* a preset with random weights (`tiny`, `small[prediction=v_prediction]`),
* the checkpoint of a preset inside the package (`tiny:trained`),
* a local diffusers directory, given by its path, such as `train` writes,
* a model in the local Hugging Face cache, given by its hub id.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmark.base.config import build
from benchmark.base.errors import UserError, shown, unknown
from benchmark.base.paths import printable, user_path
from benchmark.base.seeds import seed
from benchmark.base.spec import Spec, parse_one
from benchmark.diffusion.catalogue import cached_directory, packaged_checkpoints
from benchmark.diffusion.checkpoint import Checkpoint, inspect, load, read_object
from benchmark.diffusion.conventions import Convention
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.family import Family, families
from benchmark.diffusion.presets import PRESETS
from benchmark.diffusion.process import Process
from benchmark.diffusion.schedulers import read_process, read_scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

CARD = "card.json"
MAX_LISTED_SETTINGS = 5
"""Largest number of settings that a remark lists."""


@dataclass(frozen=True)
class TrainingImages:
    """The images that a model was trained on, according to its card.

    Attributes:
        dataset: name of the data set.
        files: fingerprint of the data set at that time.
        contents: a hash of each image; empty if the card lists none.
    """

    dataset: str
    files: str
    contents: frozenset[str]


@dataclass(frozen=True)
class Model:
    """One value of the model axis. It is resolved, but its network is not built yet.

    Attributes:
        label: the model's name as the user wrote it.
        image_size: side of the model's square images, in pixels.
        stride: downsampling factor of the lowest resolution; sides of images are multiples of it.
        steps: number of timesteps T.
        convention: schedule and prediction type; None if the directory has a scheduler, which gives them.
        preset: name of the preset, or None.
        checkpoint: the diffusers directory of the network, or None.
        card: record that `train` wrote about the training, or None.
        prior: trained model that is granted to attacks as knowledge of images, or None.
        remarks: warnings for the user about this model.
    """

    label: str
    image_size: int
    stride: int
    steps: int
    convention: Convention | None
    preset: str | None = None
    checkpoint: Checkpoint | None = None
    card: Mapping[str, object] | None = field(default=None, hash=False)
    prior: Model | None = None
    remarks: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """Return the family of the network."""
        if self.checkpoint is not None:
            return self.checkpoint.family
        assert self.preset is not None
        return families()[PRESETS[self.preset].family]

    @property
    def state(self) -> str:
        """Return `random` for a random init, `trained N steps` if a card states the steps, else `checkpoint`."""
        if self.checkpoint is None:
            return "random"
        return "checkpoint" if self.trained_steps is None else f"trained {self.trained_steps} steps"

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that define the model: configuration, weights and noise process; none for a preset."""
        if self.checkpoint is None:
            return ()
        scheduler = () if self.checkpoint.scheduler is None else (self.checkpoint.scheduler,)
        return (self.checkpoint.config, *self.checkpoint.weights, *scheduler)

    @property
    def trained_steps(self) -> int | None:
        """Return the number of training steps, earlier trainings included, or None if no card states it."""
        steps = (self.card or {}).get("steps")
        return steps if isinstance(steps, int) else None

    def trained_on(self) -> Iterator[TrainingImages]:
        """Yield the training images of its card, then the images of the model that its training started from, and so on."""
        card: object = self.card
        while isinstance(card, Mapping):
            contents = card.get("contents")
            listed = frozenset(map(str, contents)) if isinstance(contents, list) else frozenset()
            yield TrainingImages(str(card.get("dataset", "")), str(card.get("files", "")), listed)
            card = card.get("base")

    @property
    def prior_label(self) -> str:
        """Return `none`, `self` if the prior is the attacked model, or else the prior's own label."""
        if self.prior is None:
            return "none"
        return "self" if self.prior == dataclasses.replace(self, label=self.prior.label, prior=None) else self.prior.label


def resolve_model(spec: Spec) -> Model:
    """Return the model that a spec names; read only small configuration files.

    The parameter `prior` is `none`, `self` or the name of another trained model. By default, a trained model is its own prior,
    since its weights are granted anyway. A random init has no prior by default.

    Raises:
        UserError: no model has this name, a file is missing or unusable, or the prior does not fit the model.
    """
    prior_names = [value for field, value in spec.params if field == "prior"]
    model = _resolve_alone(Spec(spec.name, tuple(pair for pair in spec.params if pair[0] != "prior")))
    prior = _resolve_prior(model, prior_names[0] if prior_names else "none" if model.checkpoint is None else "self")
    return dataclasses.replace(model, label=printable(str(spec)), prior=prior)


def _resolve_prior(model: Model, name: str) -> Model | None:
    if name == "none":
        return None
    prior = model if name == "self" else _resolve_alone(parse_one(name))
    if prior.checkpoint is None:
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
        size, stride = families()[preset.family].size(preset.config, f"model '{spec.name}'")
        return Model(str(spec), size, stride, convention.steps, convention, preset=spec.name)
    if spec.name in packaged_checkpoints():
        return _resolve_directory(spec, packaged_checkpoints()[spec.name])
    path = user_path(spec.name)
    if path.is_dir():
        return _resolve_directory(spec, path)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec.name):
        return _resolve_directory(spec, _cached(spec.name))
    if "/" in spec.name or spec.name.startswith("."):
        raise UserError(f"model {shown(spec.name)} is no directory")
    raise unknown("model", spec.name, [*PRESETS, *packaged_checkpoints()])


def _cached(hub_id: str) -> Path:
    path = cached_directory(hub_id)
    if path is None:
        raise UserError(
            f"model '{hub_id}' is no directory, and no model of that name is in the Hugging Face cache of this machine; "
            f"'hf download {hub_id}' fetches it"
        )
    return path


def _resolve_directory(spec: Spec, path: Path) -> Model:
    what = f"model '{printable(spec.name)}'"
    checkpoint = inspect(path, what)
    scheduler = checkpoint.scheduler
    if scheduler and spec.params:
        raise UserError(f"{what} has its own scheduler ({scheduler.name}); leave out the brackets")
    if not scheduler and not spec.params:
        raise UserError(
            f"{what} has no scheduler_config.json: save its scheduler beside it, "
            f"or state how its client trains, as in '{printable(spec.name)}[prediction=epsilon,schedule=linear,steps=1000]'"
        )
    convention = build(Convention, dict(spec.params), what)
    model = Model(
        label=printable(str(spec)),
        image_size=checkpoint.image_size,
        stride=checkpoint.stride,
        steps=checkpoint.steps or convention.steps,
        convention=None if scheduler else convention,
        checkpoint=checkpoint,
        card=read_object(path / CARD, what) if (path / CARD).is_file() else None,
    )
    return dataclasses.replace(model, remarks=_remarks(model))


def _remarks(model: Model) -> tuple[str, ...]:
    remarks = []
    if model.checkpoint and model.checkpoint.ignored:
        names = ", ".join(map(shown, model.checkpoint.ignored[:MAX_LISTED_SETTINGS]))
        remarks.append(f"model '{model.label}': its configuration has settings that diffusers ignores: {names}")
    schedule = build_process(model)
    if schedule.signal[-1] == 0 and schedule.prediction_type == "epsilon":
        remarks.append(
            f"model '{model.label}': alpha_bar ends at 0, where the noisy image is noise alone and a network that predicts the "
            "noise learns nothing about the image; such schedules are meant for v_prediction"
        )
    return tuple(remarks)


def build_scheduler(model: Model) -> SchedulerMixin:
    """Return the diffusers scheduler that clients train the model with.

    Raises:
        UserError: the scheduler's file cannot be used.
    """
    if model.convention is not None:
        return model.convention.scheduler()
    assert model.checkpoint is not None and model.checkpoint.scheduler is not None
    what = f"model '{model.label}'"
    return read_scheduler(read_object(model.checkpoint.scheduler, what), what)


def build_process(model: Model) -> Process:
    """Return the process that clients train the model with, on the CPU.

    Raises:
        UserError: the scheduler's file cannot be used.
    """
    try:
        return read_process(build_scheduler(model))
    except ValueError as error:
        raise UserError(f"model '{model.label}': {error}") from error


def build_network(model: Model, base_seed: int) -> Denoiser:
    """Return the network with its weights, on the CPU.

    The weights of a preset are drawn from (`base_seed`, name of the preset). Other weights are read from safetensors.

    Raises:
        UserError: the weights cannot be used.
    """
    times = build_process(model).times
    if model.checkpoint is not None:
        return load(model.checkpoint, times, f"model '{model.label}'")
    assert model.preset is not None
    preset = PRESETS[model.preset]
    family = families()[preset.family]
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global random state, which is restored
        torch.default_generator.manual_seed(seed(base_seed, "model", model.preset))
        network = family.network(preset.config)
    return family.denoiser(network, times)
