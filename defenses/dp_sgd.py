"""DP-SGD: each example's gradient is clipped, Gaussian noise is added to the sum, and the mean leaves the client.

Source: after the abstract of Abadi et al. 2016 (arXiv 1607.00133), as implemented by Opacus

The guarantee is for one image added or removed (`benchmark.clients.privacy`). A sample rate below 1 needs batches by
Poisson sampling.

A client that takes E local steps clips and adds noise at each of them, so a round counts as E uses of the mechanism; that
bounds epsilon from above where batches are disjoint. A sum with other clients changes no client's own guarantee: nothing is
made of their noise.

Cost: one gradient per example, in memory B times the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.clients.privacy import NoisyGradients, private_gradient
from benchmark.plugins import ClientStep, Defense
from benchmark.types import Update


@dataclass(frozen=True, kw_only=True)
class DPSGD(NoisyGradients, Defense):
    """Parameters: those of `GaussianMechanism`."""

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`."""
        return private_gradient(step, self.clip, self.noise_multiplier, generator)
