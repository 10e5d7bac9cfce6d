"""The client keeps the noise that it drew to itself; the update is the exact gradient.

Source: after the abstract of Huang, Hong, Chen and Roos 2024 (arXiv 2405.20380)

It changes what is granted, not what crosses the wire. The timestep is granted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.plugins import Defense
from benchmark.types import Capability


@dataclass(frozen=True, kw_only=True)
class PrivateNoise(Defense):
    """No parameters."""

    hides: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
