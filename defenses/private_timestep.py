"""The client keeps its timestep private; the update is the exact gradient.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

This defense changes what is granted, not what is sent. The noise is granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.plugins import Defense
from benchmark.types import Capability


@dataclass(frozen=True, kw_only=True)
class PrivateTimestep(Defense):
    """No hyper-parameters."""

    hides: ClassVar[frozenset[Capability]] = frozenset({Capability.TIMESTEP})
