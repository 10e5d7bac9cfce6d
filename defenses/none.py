"""No defense: the client sends the exact gradient, and the laboratory setting grants its timestep and noise.

Source: ours, the reference that every defense is compared with (FedSGD, after the abstract of arXiv 1602.05629)

Granting timestep and noise is a laboratory setting. In real federations clients keep both private.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.plugins import Defense


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """No hyper-parameters."""
