"""The client keeps both noise and timestep to itself; the update is the exact gradient.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

It changes what is granted, not what crosses the wire. This is what clients of real federations do by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.plugins import Defense
from benchmark.types import Capability


@dataclass(frozen=True, kw_only=True)
class PrivateNoiseTimestep(Defense):
    """No parameters."""

    hides: ClassVar[frozenset[Capability]] = frozenset({Capability.TIMESTEP, Capability.NOISE})
