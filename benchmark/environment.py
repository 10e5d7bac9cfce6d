"""What a result was made with: stored beside every record, shown by `info`."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import benchmark
from benchmark.errors import UserError, shown

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
MOST_DIGITS = 4
"""Digits in the number of a device."""

MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 256 * 2**20)}
"""glibc's parameters, from malloc.h: no mappings of their own for large tensors, nothing trimmed, growth in large pieces."""

ALLOCATOR_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def device_name(choice: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:i` into a torch device that exists.

    Raises:
        UserError: there is no such device.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice == "auto":
        return "cuda:0" if count else "cpu"
    kind, _, index = choice.partition(":")
    if choice == "cpu":
        return "cpu"
    if kind != "cuda" or (":" in choice and not index.isdecimal()):
        raise UserError(f"unknown device {shown(choice)}; known are: auto, cpu, cuda, cuda:i")
    if len(index) > MOST_DIGITS or int(index or 0) >= count:
        raise UserError(f"device {shown(choice)} is not there: this machine has {count or 'no'} CUDA device(s)")
    return f"cuda:{index or 0}"


def settle() -> None:
    """Set threads, allocator and precision as the bench needs them; to be called before the first tensor is made.

    Threads: one for sums unless the user set OMP_NUM_THREADS. The preset U-Nets are too small to gain from a second one,
    threads that wait for each other slow down by far more when another process wants the cores, and sums that are split alike
    everywhere come out alike everywhere. The engine gives each core victims of its own instead.

    Allocator: glibc's returns freed memory to the system, and page faults then take a good part of each evaluation. It keeps
    it instead, unless the user set one of ALLOCATOR_VARIABLES.

    Precision: no tf32 on GPUs, neither in products nor in convolutions (where torch allows it by default): the last digits of
    an update are what tells a good reconstruction from an exact one.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    _settle_allocator()


def _settle_allocator() -> None:
    global _allocator
    if told := [f"{name}={os.environ[name]}" for name in ALLOCATOR_VARIABLES if name in os.environ]:
        _allocator = ", ".join(told)
    elif platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        kept = [libc.mallopt(parameter, value) for parameter, value in MALLOPT.values()]
        _allocator = "glibc, keeps freed memory" if all(kept) else _allocator


_allocator = "system default"


def describe(device: str) -> dict[str, object]:
    """Versions, device, threads, numerical flags and allocator."""
    import torch

    from benchmark.matching.resources import cores

    found: dict[str, object] = {
        "gidbench": benchmark.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **packages(),
        **_git(),
        "device": device,
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cores": cores(),
        "allocator": _allocator,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_convolution": torch.backends.cudnn.allow_tf32,
        }
    return found


def packages() -> dict[str, str]:
    """The installed version of every package that answers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


@cache
def _git() -> dict[str, object]:
    """Commit and dirtiness of the checkout, nothing where the package is installed without one."""
    root = Path(benchmark.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain")
    return {"git_commit": commit, "git_dirty": bool(status)}


@cache
def _driver() -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]


@cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
