"""Train a model on the public images of a data set; the same command again continues an interrupted training."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmark.base.errors import UserError, remark, say, shown
from benchmark.base.interrupts import Interrupted, exit_code
from benchmark.base.paths import printable, resolve_link, user_path
from benchmark.base.ranges import MAX_NUMBER
from benchmark.cli.options import add_include

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from benchmark.diffusion.models import Model
    from benchmark.diffusion.training import Training
    from benchmark.plugins import Dataset

PROGRESS_LINES = 20
"""Number of progress lines if the output is not a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add = parser.add_argument
    add("--dataset", required=True, metavar="NAME", help="only its public images are used")
    add("--model", required=True, metavar="NAME", help="a preset, or a trained model to continue from")
    add("--steps", required=True, type=int, metavar="N", help="training steps in total; a larger number continues the training")
    add("--out", required=True, type=user_path, metavar="DIR", help="directory of the model, which any grid accepts as a model")
    add("--batch-size", type=int, default=32, metavar="N", help="images per step, default 32")
    add("--lr", type=float, default=2e-4, metavar="X", help="step size of Adam, default 0.0002")
    add("--seed", type=int, default=0, metavar="N")
    add("--save-every", type=int, default=500, metavar="N", help="steps between two saved states, default 500")
    add("--device", default="auto", metavar="auto|cpu|cuda[:i]")
    add_include(parser)


def execute(options: argparse.Namespace) -> int:
    """Train a model, write its weights, schedule, card and sample sheet to `--out`, and return the exit code."""
    from benchmark.base.environment import describe
    from benchmark.base.machine import configure_torch
    from benchmark.diffusion.training import SAMPLE_SHEET_FILE, draw_sheet, publish, train

    for name in ("steps", "save_every"):
        if not 1 <= getattr(options, name) <= MAX_NUMBER:
            raise UserError(f"--{name.replace('_', '-')} must be from 1 to {MAX_NUMBER}, not {shown(getattr(options, name))}")
    configure_torch()
    training, scheduler, model, dataset = _prepare(options)
    contents = dataset.contents()
    for text in (*dataset.remarks(), *model.remarks):
        remark(text)
    if training.step < options.steps:
        training.environment = describe(training.network.device)
    try:
        with _progress(options.steps, training.step) as watch:
            train(training, options.steps, options.out, options.save_every, watch)
    except Interrupted as error:
        say(f"Interrupted at step {training.step}: it is saved, and the same command goes on from there.")
        return exit_code(error.number)
    card = {
        "command": _command_line(options),
        "steps": training.step + (model.trained_steps or 0),
        **training.describe(),
        "environment": training.environment,
        "contents": sorted(contents.public) if contents else [],
        "base": model.card,
    }
    publish(training, scheduler, options.out, card)
    print(f"Model and card: {options.out}", flush=True)
    draw_sheet(training, options.out, lambda done, rows: print(f"Sample sheet: row {done} of {rows}", flush=True))
    print(f"Sample sheet: {options.out / SAMPLE_SHEET_FILE}")
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Training, SchedulerMixin, Model, Dataset]:
    """Return the training at the step saved in `--out`, its scheduler, the model that it started from and its data set."""
    from benchmark.base.machine import device_name
    from benchmark.base.spec import parse_one
    from benchmark.diffusion.models import build_network, build_process, build_scheduler, resolve_model
    from benchmark.diffusion.training import Recipe, Training, fingerprint
    from benchmark.registry import Registry

    device = device_name(options.device)
    model = resolve_model(parse_one(options.model))
    schedule = build_process(model)
    network = build_network(model, options.seed).to(device)
    dataset: Dataset = Registry(options.include).create("dataset", parse_one(options.dataset))[1]
    options.out = resolve_link(options.out)
    images = dataset.training(model.image_size)
    try:
        recipe = Recipe(
            dataset=printable(options.dataset),
            images=len(images),
            data=fingerprint(images),
            files=dataset.fingerprint(),
            model=printable(options.model),
            schedule=f"{schedule.prediction_type} {fingerprint(schedule.level)}",
            start=fingerprint(*network.parameters()),
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
        )
        options.out.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-', 1)}") from error
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror}") from error
    training = Training(recipe, network, schedule.to(device), images)
    training.load(options.out)
    return training, build_scheduler(model), model, dataset


def _command_line(options: argparse.Namespace) -> str:
    names = ("dataset", "model", "steps", "out", "batch_size", "lr", "seed")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return f"python -m benchmark train {shlex.join(words)}"


@contextmanager
def _progress(steps: int, before: int) -> Iterator[Callable[[Training], None]]:
    """Show step, loss and time left, as a live bar on a terminal and as `PROGRESS_LINES` lines elsewhere.

    Args:
        steps: number of training steps in total.
        before: number of steps that were done earlier.

    Yields:
        A function to be called with the training after a step.
    """
    if not sys.stdout.isatty():
        started = time.monotonic()
        yield lambda training: _print_progress(training, steps, before, started)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with bar:
        task = bar.add_task("", total=steps, completed=before)
        yield lambda training: bar.update(task, completed=training.step, description=f"loss {training.loss:.4f}")


def _print_progress(training: Training, steps: int, before: int, started: float) -> None:
    if training.step % max(1, steps // PROGRESS_LINES) == 0 or training.step == steps:
        seconds_left = int((time.monotonic() - started) / (training.step - before) * (steps - training.step))
        print(
            f"[{training.step}/{steps}] loss {training.loss:.4f}, {seconds_left // 60}:{seconds_left % 60:02d} left", flush=True
        )
