"""Secure aggregation: the server learns the mean of the clients' updates, and no client's own.

Source: after the abstract of Bonawitz et al. 2017 (ACM CCS, doi 10.1145/3133956.3133982)

The protocol is taken to be perfect: what is measured is what the mean itself gives away, over the scenario's `clients`. Of one
client the mean is its update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Defense):
    """No parameters."""

    aggregates: ClassVar[bool] = True

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(aggregated_clients=scenario.clients if scenario.clients > 1 else None)
