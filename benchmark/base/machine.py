"""The machine: devices, threads, precision and free memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.base.errors import UserError, shown

if TYPE_CHECKING:
    import torch

MAX_DIGITS = 4
"""Maximum number of digits in the number of a device."""

MALLOC_PARAMETERS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 256 * 2**20)}
"""glibc's malloc parameters (number in malloc.h, value).

Large tensors get no memory mappings of their own, freed memory is not returned, and the heap grows in large pieces.
"""

ALLOCATOR_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def device_name(choice: str) -> str:
    """Return the name of an existing torch device for `auto`, `cpu`, `cuda` or `cuda:i`.

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
    if len(index) > MAX_DIGITS or int(index or 0) >= count:
        raise UserError(f"device {shown(choice)} does not exist: this machine has {count or 'no'} CUDA device(s)")
    return f"cuda:{index or 0}"


def configure_torch() -> None:
    """Set threads, allocator and precision for GIDBench. Call this before the first tensor is created.

    Threads: torch uses one thread, unless the user set OMP_NUM_THREADS. The preset U-Nets are too small to gain from a second
    thread. Threads that wait for each other become much slower when another process uses the cores. With one thread, sums are
    split in the same way on every machine and give the same results. The engine instead gives each core its own victims.

    Allocator: by default, glibc returns freed memory to the system. Page faults then take a large part of each evaluation.
    Here glibc keeps the memory, unless the user set one of ALLOCATOR_VARIABLES.

    Precision: tf32 is off on GPUs, in matrix products and in convolutions (where torch allows it by default). The last digits
    of an update distinguish a good reconstruction from an exact one.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    _configure_allocator()


def _configure_allocator() -> None:
    global _allocator_description
    if user_settings := [f"{name}={os.environ[name]}" for name in ALLOCATOR_VARIABLES if name in os.environ]:
        _allocator_description = ", ".join(user_settings)
    elif platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        accepted = [libc.mallopt(parameter, value) for parameter, value in MALLOC_PARAMETERS.values()]
        _allocator_description = "glibc, keeps freed memory" if all(accepted) else _allocator_description


_allocator_description = "system default"


def allocator() -> str:
    """Return a readable description of the memory allocator."""
    return _allocator_description


def precision() -> dict[str, bool]:
    """Return the flags that decide how GPUs round products. They are part of a cell's identity."""
    import torch

    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
    }


def share_machine(processes: int) -> None:
    """Limit this process to its share of the cores and of the free memory, as one of `processes` equal processes."""
    global _processes
    _processes = processes


_processes = 1


def free_memory(device: torch.device) -> int:
    """Return the bytes of free memory on a GPU, or for this process on the CPU."""
    import torch

    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0]) // _processes
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_system_free(), _cgroup_free()) // _processes + _allocator_free()


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, from malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _allocator_free() -> int:
    """Return the bytes that glibc's allocator holds but does not use. `configure_torch` lets it keep freed memory."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # another C library, or an old one
        return 0
    mallinfo2.restype = _Mallinfo
    return int(mallinfo2().fordblks)


def _system_free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _cgroup_free() -> int:
    """Return the bytes that the limit of the control group leaves, e.g. in a container."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or no limit
        return sys.maxsize


def cores() -> int:
    """Return the number of cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // _processes)


OUT_OF_MEMORY_PHRASES = (
    "alloc_failed",
    "bad_alloc",
    "can't allocate memory",
    "can't start new thread",
    "cannot allocate memory",
    "failed to map segment",
    "out of memory",
    "resource temporarily unavailable",
)
"""Parts of error messages of libraries when memory, or the space for a thread's stack, ran out."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU."""
    import torch

    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in message for words in OUT_OF_MEMORY_PHRASES)
