"""Trains a denoiser on the public images of a data set, and saves it as a model that every grid can name.

OUT/unet, OUT/scheduler  the averaged weights as safetensors, and the process, in the layout of diffusers
OUT/card.json            the training images, the settings of the training, and the environment
OUT/samples.png          images drawn from the model
OUT/training.pt          the state from which a later command continues
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import SchedulerMixin
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from benchmark.base.errors import UserError, first_line
from benchmark.base.files import TEMP_PREFIX, remove, replace
from benchmark.base.images import to_unit
from benchmark.base.interrupts import Interrupted, record_interrupts
from benchmark.base.ranges import Range, Share, check_fields
from benchmark.base.seeds import stream
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import training_loss
from benchmark.diffusion.models import CARD
from benchmark.diffusion.process import Process
from benchmark.diffusion.sampler import ddim

STATE_FILE = "training.pt"
SAMPLE_SHEET_FILE = "samples.png"
SHEET_ROWS = 8
SHEET_COLUMNS = 8
SHEET_STEPS = 50
SHEET_SIDE = 64
"""Smaller images on the sheet are enlarged by a whole factor, at most to this side in pixels."""
LOSS_SMOOTHING = 0.99
"""Weight of the past in the running mean of the loss."""

NAME_FIELDS = frozenset({"dataset", "model"})
"""Fields of a recipe with the user's names for data and model. They may change: fingerprints identify data and model."""


@dataclass(frozen=True)
class Recipe:
    """All settings that determine the weights after a number of steps, except the data themselves.

    Attributes:
        dataset: name of the data set whose public images are the training images.
        images: number of training images.
        data: fingerprint of the training images.
        files: fingerprint of all files of the data set, including the victims.
        model: architecture and noise schedule, as on the command line.
        schedule: fingerprint of the levels, with the prediction type.
        start: fingerprint of the initial weights.
        batch_size: images per step.
        lr: step size of Adam.
        ema_decay: largest decay of the average of the weights; the decay starts at 0 and rises with the steps.
        seed: root of every random stream, including the initial weights of a preset.
    """

    dataset: str
    images: int
    data: str
    files: str
    model: str
    schedule: str
    start: str
    batch_size: Annotated[int, Range(1, 100_000)] = 32
    lr: Share = 2e-4
    ema_decay: Share = 0.9999
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


def fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the tensors' contents."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Training:
    """The state of a training: weights, their average, the state of the optimiser, and the number of steps taken.

    Each step has its own random stream. So an interrupted training that continues reaches the same weights.
    """

    def __init__(self, recipe: Recipe, network: Denoiser, schedule: Process, images: Tensor) -> None:
        self.recipe, self.network, self.schedule, self.images = recipe, network, schedule, images
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        self.average = EMAModel(network.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=3 / 4)
        self.average.to(network.device)
        self.step = 0
        self.loss = 0.0
        self.environment: dict[str, object] = {}
        """The environment of the latest steps, for the card."""

    def advance(self) -> None:
        """Take one step of Adam on the training loss of a random batch.

        Raises:
            UserError: the loss is not finite.
        """
        x_0, t, eps = (tensor.to(self.network.device) for tensor in self._batch())
        loss = training_loss(self.network, self.schedule, x_0, t, eps)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the training loss is not finite at step {self.step + 1}; try a smaller --lr")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.average.step(self.network.parameters())
        self.step += 1
        self.loss = value if self.step == 1 else LOSS_SMOOTHING * self.loss + (1 - LOSS_SMOOTHING) * value

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw images with timesteps and noise; each image is mirrored left to right with probability 1/2."""
        generator = stream(self.recipe.seed, "training", self.step)
        x_0 = self.images[torch.randint(len(self.images), (self.recipe.batch_size,), generator=generator)]
        mirrored = torch.rand(len(x_0), 1, 1, 1, generator=generator) < 0.5
        x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        t = torch.randint(self.schedule.steps, (len(x_0),), generator=generator)
        return x_0, t, torch.randn(x_0.shape, generator=generator)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the files and directories that `publish` and `draw_sheet` write."""
        return (self.network.part, "scheduler", CARD, SAMPLE_SHEET_FILE)

    def describe(self) -> dict[str, object]:
        """Return the entries of the card that describe this training."""
        parameters = sum(p.numel() for p in self.network.parameters())
        return {"loss": round(self.loss, 5), "parameters": parameters, **dataclasses.asdict(self.recipe)}

    def save(self, out: Path) -> None:
        """Write the state that `load` reads. A failed write leaves the earlier file unchanged.

        Raises:
            UserError: the weights are not finite; the earlier file stays.
        """
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "loss": self.loss,
            "environment": self.environment,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            raise UserError(f"the weights are not finite after step {self.step}; try a smaller --lr")
        content = io.BytesIO()
        torch.save(state, content)
        replace(out / STATE_FILE, content.getvalue())

    def load(self, out: Path) -> None:
        """Continue from the state that `save` wrote; do nothing if there is none.

        Raises:
            UserError: the state cannot be read, the state belongs to another training, or `out` holds a model without a state.
        """
        if not (out / STATE_FILE).exists():
            if outputs := [name for name in self.output_names if os.path.lexists(out / name)]:
                raise UserError(f"{out} holds a {outputs[0]} whose training cannot be continued; choose another --out")
            return
        try:
            state: dict[str, Any] = torch.load(out / STATE_FILE, map_location=self.network.device, weights_only=True)
            deciding = {k: v for k, v in dataclasses.asdict(self.recipe).items() if k not in NAME_FIELDS}
            differing = [k for k, v in deciding.items() if state["recipe"].get(k) != v]
            if differing:
                raise UserError(f"{out} holds a training with another {', '.join(differing)}; choose another --out")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.network.device)
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.loss, self.environment = state["step"], state["loss"], state["environment"]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot continue from {out / STATE_FILE} ({first_line(error)}); choose another --out") from error


def train(training: Training, steps: int, out: Path, save_every: int, watch: Callable[[Training], None]) -> None:
    """Advance the training to `steps` steps.

    The state is saved after every `save_every` steps, at the end, and when the user interrupts.

    Args:
        training: the training, which is changed.
        steps: total number of steps, earlier ones included.
        out: directory for the state.
        save_every: number of steps between two saves.
        watch: called after each step.

    Raises:
        Interrupted: a signal arrived; the current step was finished and saved.
        UserError: the training has already taken more steps, the loss or a weight is not finite, or the disk refuses the state.
    """
    if training.step > steps:
        raise UserError(f"{out} holds a training of {training.step} steps already, more than {steps}; choose another --out")
    try:
        with record_interrupts(patient=True) as interrupts:  # a training resumed from half a step would reach other weights
            while training.step < steps and not interrupts:
                training.advance()
                watch(training)
                if training.step % save_every == 0:
                    training.save(out)
            training.save(out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    if interrupts:
        raise Interrupted(interrupts[0])


def publish(training: Training, scheduler: SchedulerMixin, out: Path, card: dict[str, object]) -> None:
    """Write the averaged weights, the scheduler and the card into `out`, where `resolve_model` finds them.

    A sample sheet of earlier weights is removed.

    Raises:
        UserError: the files cannot be written.
    """
    training.average.store(training.network.parameters())
    training.average.copy_to(training.network.parameters())
    aside = out / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    try:
        training.network.body.save_pretrained(aside / training.network.part, safe_serialization=True)
        scheduler.save_pretrained(aside / "scheduler")
        (aside / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        for part in sorted(aside.iterdir(), key=lambda path: path.name == CARD):  # the card comes last
            target = out / part.name
            remove(target)
            part.rename(target)
        (out / SAMPLE_SHEET_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        remove(aside)
        training.average.restore(training.network.parameters())


@torch.no_grad()
def draw_sheet(training: Training, out: Path, watch: Callable[[int, int], None]) -> None:
    """Draw images with the averaged weights by DDIM in `SHEET_STEPS` steps, and save them as one picture, `SHEET`.

    Args:
        training: a training whose model has been published.
        out: the directory of the model.
        watch: called after each row with its number and the number of rows.

    Raises:
        UserError: the picture cannot be written.
    """
    training.average.store(training.network.parameters())
    training.average.copy_to(training.network.parameters())
    try:
        rows = []
        for number, z in enumerate(_latents(training), 1):
            rows.append(ddim(training.network, training.schedule, z.to(training.network.device), SHEET_STEPS))
            watch(number, SHEET_ROWS)
        content = io.BytesIO()
        _picture(torch.cat(rows)).save(content, format="PNG")
        replace(out / SAMPLE_SHEET_FILE, content.getvalue())
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; the model itself is complete") from error
    finally:
        training.average.restore(training.network.parameters())


def _latents(training: Training) -> Sequence[Tensor]:
    """Return the latents of the sheet, one tensor for each row."""
    shape = (SHEET_ROWS * SHEET_COLUMNS, *training.images.shape[1:])
    return torch.randn(shape, generator=stream(training.recipe.seed, "sheet")).chunk(SHEET_ROWS)


def _picture(images: Tensor) -> Image.Image:
    factor = max(1, SHEET_SIDE // images.shape[-1])
    images = images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    unit = make_grid(images, nrow=SHEET_COLUMNS, padding=2, pad_value=1.0)
    return Image.fromarray((255 * to_unit(unit)).round().astype("uint8"))
