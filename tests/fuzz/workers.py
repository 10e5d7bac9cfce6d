"""Runs many cases, in forked workers: a crash inside a library ends a worker, not the suite, and is a bad case itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.models import Model, build_network
from tests.fuzz.harness import SECONDS, Bad, judge

KINDS = ("grids", "specs", "checkpoints", "images", "data", "run_dirs")

PATIENCE = 3 * SECONDS + 30
"""Seconds after which a worker that sends nothing is killed: it hangs where no signal handler of Python's runs."""

MEMORY = 12 * 2**30
"""Bytes of address space of a worker."""

BATCH = 200
"""Cases of one worker. The next worker starts with fresh caches."""

SHARED = """
title: t
datasets: [photos]
models: [tiny]
defenses: [none]
attacks: [dlg]
victims: 1
evaluations: 1
"""
"""A grid whose dry run does the work that the cases share."""


def bad_cases(kind: str, seeds: Sequence[int], root: Path, watch: Callable[[int], None] = lambda done: None) -> list[Bad]:
    """Run the cases of these numbers and return every fault; `watch` receives the number of cases that are done."""
    preload()
    prepare = getattr(importlib.import_module(f"tests.fuzz.{kind}"), "before", None)
    bad: list[Bad] = []
    done = 0
    with shared_work(root):
        if prepare:
            prepare(root)
        while done < len(seeds):
            for faults in _worker(kind, seeds[done : done + BATCH], root):
                bad += faults
                done += 1
                watch(done)
    return bad


@contextlib.contextmanager
def shared_work(root: Path) -> Iterator[None]:
    """Do once, before the first fork, what most commands would repeat.

    Shared are the list of installed plugins, the digests of the code, the public crops of the shipped photographs, the
    networks of presets and the engine's plans (within `shared_plans`). No case changes them.
    """
    from benchmark.cli import main
    from benchmark.datasets.photos import Photos
    from benchmark.experiment import cache, executors
    from benchmark.registry import registry
    from tests.fuzz.model_files import valid

    valid()
    public = Photos.public
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Photos, "public", lambda self, size: list(_public_photographs(public, size)))
        patch.setattr(cache, "build_network", _network)
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        patch.setattr(executors, "shared_plans", contextlib.nullcontext)  # a run would start without plans
        (root / "shared.yaml").write_text(SHARED)
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["run", "--grid", str(root / "shared.yaml"), "--dry-run", "--out", str(root / "shared")])
        assert code == 0, "the command that prepares the workers has failed"
        yield


def preload() -> None:
    """Import what is heavy once, before the first fork."""
    for name in (
        "benchmark.cli",
        "benchmark.experiment.runner",
        "benchmark.diffusion.training",
        "benchmark.report.build",
        "pyarrow.dataset",
    ):
        importlib.import_module(name)
    from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401  # diffusers imports them on first use
    from PIL import Image

    from benchmark.base.machine import configure_torch

    Image.init()
    configure_torch()


def _network(model: Model, seed: int) -> Denoiser:
    return _preset_network(model, seed) if model.checkpoint is None else build_network(model, seed)


_preset_network = functools.lru_cache(4)(build_network)


@functools.cache
def _public_photographs(public: Callable[[object, int], Sequence[object]], size: int) -> Sequence[object]:
    from benchmark.datasets.photos import Photos

    return public(Photos(), size)


def _worker(kind: str, seeds: Sequence[int], root: Path) -> Iterator[list[Bad]]:
    """Yield the faults of one case after the other; after a crash, those up to the case that crashed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(kind, seeds, root, sender))
    process.start()
    sender.close()
    try:
        for seed in seeds:
            if not receiver.poll(PATIENCE):
                yield [Bad(seed, "hang", f"no answer within {PATIENCE} s")]
                return
            try:
                yield receiver.recv()
            except EOFError:
                process.join()
                yield [Bad(seed, "the process died", f"exit code {process.exitcode}")]
                return
    finally:
        process.kill()
        process.join()


def _work(kind: str, seeds: Sequence[int], root: Path, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _warn_as_outside_of_pytest()
    for seed in seeds:
        place = root / f"{kind}-{seed}"
        try:
            found = judge(kind, seed, place)[1]
        except Exception:
            found = [Bad(seed, "the harness failed", traceback.format_exc()[-1500:])]
        sender.send(found)
        shutil.rmtree(place, ignore_errors=True)


class _Now:
    """A stream that is whatever `sys.stderr` is now: libraries keep the one that they were imported under."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _warn_as_outside_of_pytest() -> None:
    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if type(handler) is logging.StreamHandler:
            handler.setStream(_Now())
