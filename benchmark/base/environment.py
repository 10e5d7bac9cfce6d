"""A description of the software and hardware behind a result. Every record stores it, and `info` prints it."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import benchmark
from benchmark.base import machine

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "opacus",
    "lpips",
    "scikit-image",
    "scipy",
    "numpy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "safetensors",
)


def describe(device: str) -> dict[str, object]:
    """Return versions, device, threads, numerical flags and allocator."""
    import torch

    found: dict[str, object] = {
        "gidbench": benchmark.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **packages(),
        **_git_state(),
        "device": device,
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cores": machine.cores(),
        "allocator": machine.allocator(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda,
            "driver": _driver_version(),
            **machine.precision(),
        }
    return found


def packages() -> dict[str, str]:
    """Return the installed version of every package in `PACKAGES`, on which results depend."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def _git_state() -> dict[str, object]:
    """Return the commit of the checkout and whether it has changes; empty if the package is not in a checkout."""
    root = Path(benchmark.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _command_output("git", "-C", str(root), "rev-parse", "HEAD")
    status = _command_output("git", "-C", str(root), "status", "--porcelain")
    return {"git_commit": commit, "git_dirty": bool(status)}


@cache
def _driver_version() -> str:
    return _command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]


@cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _command_output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
