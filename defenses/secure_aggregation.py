"""Secure aggregation: the server receives the mean of the clients' updates, and no client's own update.

Source: after the abstract of Bonawitz et al. 2017 (ACM CCS, doi 10.1145/3133956.3133982)

The protocol is assumed to be perfect. The benchmark measures what the mean over the scenario's `clients` reveals. With one
client the mean is that client's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Defense):
    """No hyper-parameters."""

    aggregates: ClassVar[bool] = True

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(aggregated_clients=scenario.clients if scenario.clients > 1 else None)
