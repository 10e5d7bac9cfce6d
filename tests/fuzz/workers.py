"""Runs many cases, in forked workers: a crash inside a library ends a worker, not the suite, and is a bad case itself."""

from __future__ import annotations

import importlib
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

from tests.fuzz.harness import SECONDS, Bad, judge

KINDS = ("grids", "specs", "checkpoints", "images", "data", "run_dirs")

PATIENCE = 3 * SECONDS + 30
"""Seconds after which a worker that sends nothing is killed: it hangs where no signal handler of Python's runs."""

MEMORY = 12 * 2**30
"""Bytes of address space of a worker."""

BATCH = 200
"""Cases of one worker: a later one begins with empty caches."""


def bad_cases(kind: str, seeds: Sequence[int], root: Path, watch: Callable[[int], None] = lambda done: None) -> list[Bad]:
    """Run the cases of these numbers and return every fault; `watch` receives the number of cases that are done."""
    preload()
    prepare = getattr(importlib.import_module(f"tests.fuzz.{kind}"), "before", None)
    if prepare:
        prepare(root)
    bad: list[Bad] = []
    done = 0
    while done < len(seeds):
        for found in _worker(kind, seeds[done : done + BATCH], root):
            bad += found
            done += 1
            watch(done)
    return bad


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
