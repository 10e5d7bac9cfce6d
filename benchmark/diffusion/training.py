"""Trains a denoiser on the public images of a data set, and leaves it as a model that every grid can name.

OUT/unet, OUT/scheduler  the averaged weights as safetensors and the process, in diffusers' layout
OUT/card.json            what it was trained on, how, and with what
OUT/samples.png          what it draws
OUT/training.pt          where a later command goes on
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
from benchmark.base.files import ASIDE, remove, replace
from benchmark.base.images import to_unit
from benchmark.base.interrupts import Interrupted, noted
from benchmark.base.ranges import Range, Share, check_fields
from benchmark.base.seeds import stream
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import training_loss
from benchmark.diffusion.models import CARD
from benchmark.diffusion.process import Process
from benchmark.diffusion.sampler import ddim

STATE = "training.pt"
SHEET = "samples.png"
SHEET_ROWS = 8
SHEET_COLUMNS = 8
SHEET_STEPS = 50
SHEET_SIDE = 64
"""Pixels to which smaller draws are enlarged."""
SMOOTHING = 0.99
"""Share of the past in the loss that is shown."""

LABELS = frozenset({"dataset", "model"})
"""Fields of a recipe that say how data and model were asked for; what they are is in its fingerprints."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights after a number of steps, the data themselves excepted.

    Attributes:
        dataset: name of the data set; its public images are trained on.
        images: number of training images.
        data: a fingerprint of them.
        files: the data set's own fingerprint, of all its files, victims among them.
        model: the architecture and its noise schedule, as on the command line.
        schedule: a fingerprint of the levels, and the prediction type.
        start: a fingerprint of the initial weights.
        batch_size: images per step.
        lr: step size of Adam.
        ema_decay: the most that the average of the weights keeps of its past; it starts at 0 and rises with the steps.
        seed: root of every random stream, the initial weights of a preset among them.
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
    """A hash of the tensors' contents."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Training:
    """A training under way: weights, their average, the optimiser's state, and the steps taken.

    Step k draws from a random stream of its own, so that a training that was interrupted goes on to the same weights.
    """

    def __init__(self, recipe: Recipe, network: Denoiser, schedule: Process, images: Tensor) -> None:
        self.recipe, self.network, self.schedule, self.images = recipe, network, schedule, images
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        self.average = EMAModel(network.parameters(), decay=recipe.ema_decay, use_ema_warmup=True, power=3 / 4)
        self.average.to(network.device)
        self.step = 0
        self.loss = 0.0
        self.environment: dict[str, object] = {}
        """What the latest steps were taken with."""

    def advance(self) -> None:
        """One step of Adam on the training loss of a random batch.

        Raises:
            UserError: the loss left the finite numbers.
        """
        x_0, t, eps = (tensor.to(self.network.device) for tensor in self._batch())
        loss = training_loss(self.network, self.schedule, x_0, t, eps)
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"the training loss left the finite numbers at step {self.step + 1}; try a smaller --lr")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.average.step(self.network.parameters())
        self.step += 1
        self.loss = value if self.step == 1 else SMOOTHING * self.loss + (1 - SMOOTHING) * value

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, half of them mirrored left to right, with their timesteps and noise."""
        draw = stream(self.recipe.seed, "training", self.step)
        x_0 = self.images[torch.randint(len(self.images), (self.recipe.batch_size,), generator=draw)]
        mirrored = torch.rand(len(x_0), 1, 1, 1, generator=draw) < 0.5
        x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        t = torch.randint(self.schedule.steps, (len(x_0),), generator=draw)
        return x_0, t, torch.randn(x_0.shape, generator=draw)

    @property
    def published(self) -> tuple[str, ...]:
        """What it leaves for its users."""
        return (self.network.part, "scheduler", CARD, SHEET)

    def describe(self) -> dict[str, object]:
        """What a card says of it."""
        parameters = sum(p.numel() for p in self.network.parameters())
        return {"loss": round(self.loss, 5), "parameters": parameters, **dataclasses.asdict(self.recipe)}

    def save(self, out: Path) -> None:
        """Write the state that `load` reads, whole or not at all.

        Raises:
            UserError: the weights are not finite; what was saved before stays.
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
            raise UserError(f"the weights left the finite numbers before step {self.step}; try a smaller --lr")
        content = io.BytesIO()
        torch.save(state, content)
        replace(out / STATE, content.getvalue())

    def load(self, out: Path) -> None:
        """Go on where `save` left off; at the beginning where there is nothing.

        Raises:
            UserError: the state cannot be read, or is that of another training, or a model lies there without one.
        """
        if not (out / STATE).exists():
            if there := [name for name in self.published if os.path.lexists(out / name)]:
                raise UserError(f"{out} holds a {there[0]} whose training cannot go on; choose another --out")
            return
        try:
            state: dict[str, Any] = torch.load(out / STATE, map_location=self.network.device, weights_only=True)
            decides = {k: v for k, v in dataclasses.asdict(self.recipe).items() if k not in LABELS}
            other = [k for k, v in decides.items() if state["recipe"].get(k) != v]
            if other:
                raise UserError(f"{out} holds a training with another {', '.join(other)}; choose another --out")
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.network.device)
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.loss, self.environment = state["step"], state["loss"], state["environment"]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot go on from {out / STATE} ({first_line(error)}); choose another --out") from error


def train(training: Training, steps: int, out: Path, save_every: int, watch: Callable[[Training], None]) -> None:
    """Advance to `steps`, saving the state every `save_every` steps, at the end, and when the user interrupts.

    Raises:
        Interrupted: a signal arrived; the step under way was finished and saved.
        UserError: the loss left the finite numbers, or the disk does not take the state.
    """
    if training.step > steps:
        raise UserError(f"{out} holds a training of {training.step} steps already, more than {steps}; choose another --out")
    try:
        with noted(patient=True) as interrupts:  # half a step would not go on to the same weights
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
    """Write the averaged weights, the schedule and the card into `out`, where `resolve` finds them.

    A sample sheet of earlier weights is removed.

    Raises:
        UserError: the disk does not take them.
    """
    training.average.store(training.network.parameters())
    training.average.copy_to(training.network.parameters())
    aside = out / f"{ASIDE}{secrets.token_hex(8)}"
    try:
        training.network.body.save_pretrained(aside / training.network.part, safe_serialization=True)
        scheduler.save_pretrained(aside / "scheduler")
        (aside / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        for part in sorted(aside.iterdir(), key=lambda path: path.name == CARD):  # the card last
            target = out / part.name
            remove(target)
            part.rename(target)
        (out / SHEET).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        remove(aside)
        training.average.restore(training.network.parameters())


@torch.no_grad()
def draw_sheet(training: Training, out: Path, watch: Callable[[int, int], None]) -> None:
    """Draw images with the averaged weights by DDIM in `SHEET_STEPS` steps, and save them as one picture, `SHEET`.

    Args:
        training: whose model has been published.
        out: its directory.
        watch: called after each row with its number and the number of rows.

    Raises:
        UserError: the disk does not take it.
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
        replace(out / SHEET, content.getvalue())
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; the model itself is complete") from error
    finally:
        training.average.restore(training.network.parameters())


def _latents(training: Training) -> Sequence[Tensor]:
    """Return the noise that each row of the sheet begins with."""
    shape = (SHEET_ROWS * SHEET_COLUMNS, *training.images.shape[1:])
    return torch.randn(shape, generator=stream(training.recipe.seed, "sheet")).chunk(SHEET_ROWS)


def _picture(drawn: Tensor) -> Image.Image:
    enlarged = max(1, SHEET_SIDE // drawn.shape[-1])
    drawn = drawn.repeat_interleave(enlarged, dim=-1).repeat_interleave(enlarged, dim=-2)
    unit = make_grid(drawn, nrow=SHEET_COLUMNS, padding=2, pad_value=1.0)
    return Image.fromarray((255 * to_unit(unit)).round().astype("uint8"))
