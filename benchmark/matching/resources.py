"""What an evaluation needs, found without doing it, and what the machine has."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import CleanGuess, Updates, step_by_step
from benchmark.types import Observation


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, counts the bytes of the tensors that are alive; scratch space inside an operator is not seen.

    Attributes:
        bytes: alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation and note what it made."""
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def predicted(seen: Observation) -> int:
    """Bytes that one more victim seen like this adds to an evaluation: that evaluation's own tensors, and the seen update.

    It is played once, with two victims, on torch's `meta` device, where tensors have shapes but no numbers.
    """
    parameters = dict(seen.network.named_parameters())
    practice = (seen.batch_shape, seen.clients, seen.local_steps, step_by_step(seen))
    key = (tuple((name, value.shape) for name, value in parameters.items()), practice, tuple(seen.update))
    if key not in _predicted:
        Updates(seen)  # which backend it is takes numbers to find out
        try:
            hollow = {id(value): nn.Parameter(value.to("meta"), value.requires_grad) for value in parameters.values()}
            network, schedule = copy.deepcopy(seen.network, hollow).to("meta"), seen.schedule.to("meta")
            _predicted[key] = _played(dataclasses.replace(seen, network=network, schedule=schedule))
        except Exception:  # a network that looks at its numbers, or holds tensors that do not move, is played with numbers
            _predicted[key] = _played(seen)
    return _predicted[key]


_predicted: dict[object, int] = {}


def _played(seen: Observation) -> int:
    device, dtype = seen.schedule.alpha_bar.device, next(seen.network.parameters()).dtype
    updates = Updates(seen)
    with Peak() as memory:
        x = torch.zeros(2, *seen.batch_shape, device=device, dtype=dtype, requires_grad=True)
        t = torch.zeros(2, seen.image_count, dtype=torch.int64, device=device)
        shapes = {name: seen.network.get_parameter(name).shape for name in seen.update}
        goal = {name: torch.empty(2, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}
        cost = squared_distance(updates(CleanGuess(x, t, torch.zeros_like(x))), goal)
        grad(cost.sum(), x)
    return int(memory.peak) // 2


def available(device: torch.device) -> int:
    """Bytes that are free on the device, or for this process on the CPU."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_free(), _allowed()) + _kept()


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`, from malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _kept() -> int:
    """What glibc's allocator holds and does not use: the bench tells it to keep what tensors leave (`environment.settle`)."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):  # another C library, or an old one
        return 0
    mallinfo2.restype = _Mallinfo
    return int(mallinfo2().fordblks)


def _free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _allowed() -> int:
    """What the control group leaves, as containers set it."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or no limit
        return sys.maxsize


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


OUT_OF_MEMORY = (
    "alloc_failed",
    "bad_alloc",
    "can't allocate memory",
    "can't start new thread",
    "cannot allocate memory",
    "failed to map segment",
    "out of memory",
    "resource temporarily unavailable",
)
"""What libraries say where memory, or the room for a thread's stack, ran out."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in message for words in OUT_OF_MEMORY)
