"""DP-SGD: the client clips each example's gradient, adds Gaussian noise to the sum, and sends the mean.

Source: after the abstract of Abadi et al. 2016 (arXiv 1607.00133), as implemented by Opacus

The guarantee is for one image added or removed (`benchmark.clients.privacy`). A sample rate below 1 needs batches that are
drawn by Poisson sampling.

A client that takes E local steps clips and adds noise at each of them. A round therefore counts as E uses of the mechanism;
this bounds epsilon from above if the batches are disjoint. The noise of other clients is not counted: adding their updates does
not change a client's own guarantee.

Cost: one gradient per example, with memory for B gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmark.clients.privacy import NoisyGradients, private_gradient
from benchmark.plugins import ClientStep, Defense
from benchmark.types import Update


@dataclass(frozen=True, kw_only=True)
class DPSGD(NoisyGradients, Defense):
    """The hyper-parameters of `GaussianMechanism`, and no others."""

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """See `Defense.gradient`."""
        return private_gradient(step, self.clip, self.noise_multiplier, generator)
