"""Show versions, device, threads and allocator, and which optional weights and data are available."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.registry import Plugin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `info`."""
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]")


def execute(options: argparse.Namespace) -> int:
    """Print the environment as records store it, and which weights and data are missing. Return 0."""
    import torch

    from benchmark.base.environment import describe
    from benchmark.base.machine import configure_torch, device_name
    from benchmark.evaluation.metrics import lpips_missing
    from benchmark.registry import Registry

    configure_torch()
    for name, value in describe(device_name(options.device)).items():
        print(f"{name:<26}{value}")
    print("\nOptional weights")
    missing = lpips_missing()
    print(f"  LPIPS: {missing or 'available'} (the cache is {torch.hub.get_dir()})")
    if missing:
        print("    delete a damaged file; to get it, where there is internet:")
        print("    python -c \"import lpips; lpips.LPIPS(net='alex')\"")
    print("\nData")
    for plugin in Registry().all("dataset"):
        print(f"  {plugin.name}: {_availability(plugin)}")
    return 0


def _availability(plugin: Plugin) -> str:
    """Return a text that says whether the images of a data set can be read. Its public images are tried."""
    from benchmark.base.errors import UserError, first_line
    from benchmark.registry import load

    cls = load(plugin)
    if any(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls)):
        return f"{plugin.summary} Available at the path that you give."
    try:
        cls().public(16)
    except (UserError, OSError) as error:
        return f"missing: {first_line(error)}"
    return f"available. {plugin.summary}"
