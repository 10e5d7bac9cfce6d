"""Predict the memory of one evaluation without computing it."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import Backend, CleanGuess, Updates
from benchmark.types import Observation


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all live tensors within this context, except scratch space inside an operator.

    Attributes:
        bytes: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the tensors that it creates."""
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


def predicted(observation: Observation, backend: Backend) -> int:
    """Return the bytes that one more such victim adds to an evaluation: the evaluation's own tensors and the observed update.

    The evaluation runs once, with two victims, on torch's `meta` device, where tensors have shapes but no numbers.
    """
    parameters = dict(observation.network.named_parameters())
    try:
        hollow = {id(value): nn.Parameter(value.to("meta"), value.requires_grad) for value in parameters.values()}
        network = copy.deepcopy(observation.network, hollow).to("meta")
        return _measured(dataclasses.replace(observation, network=network, schedule=observation.schedule.to("meta")), backend)
    except Exception:  # a network that reads its numbers, or holds tensors that do not move: run it with numbers
        return _measured(observation, backend)


def _measured(observation: Observation, backend: Backend) -> int:
    device, dtype = observation.schedule.level.device, next(observation.network.parameters()).dtype
    updates = Updates(observation, backend)
    with Peak() as memory:
        x = torch.zeros(2, *observation.batch_shape, device=device, dtype=dtype, requires_grad=True)
        t = torch.zeros(2, observation.image_count, dtype=torch.int64, device=device)
        shapes = {name: observation.network.get_parameter(name).shape for name in observation.update}
        observed = {name: torch.empty(2, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}
        cost = squared_distance(updates(CleanGuess(x, t, torch.zeros_like(x))), observed)
        grad(cost.sum(), x)
    return int(memory.peak) // 2
