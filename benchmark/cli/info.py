"""Show versions, device, threads and allocator, and which optional weights and data are reachable."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `info`."""
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]")


def execute(options: argparse.Namespace) -> int:
    """Print what records store of their environment, and what is missing."""
    import torch

    from benchmark.environment import describe, device_name
    from benchmark.metrics import lpips_missing

    for name, value in describe(device_name(options.device)).items():
        print(f"{name:<26}{value}")
    print("\nOptional weights")
    missing = lpips_missing()
    print(f"  LPIPS: {missing or 'reachable'} (the cache is {torch.hub.get_dir()})")
    if missing:
        print("    to get it, where there is internet: python -c \"import lpips; lpips.LPIPS(net='alex')\"")
    print("\nData")
    print("  photos, faces: reachable (they ship inside scikit-image)")
    print("  folder:PATH: your own PNG or JPEG images")
    return 0
