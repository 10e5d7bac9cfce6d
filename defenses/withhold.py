"""Withheld layers: the client freezes the named layers, so their gradients are never sent.

Source: ours, the answer to attacks that read values in closed form from single layers

Parameters whose names contain `layers` are neither trained nor sent. The server must train them on other data. `time_emb`
matches the time embedding and every layer that projects it, `time_embedding` only the two layers of the embedding itself, and
`conv_out` the output convolution.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from benchmark.base.errors import UserError
from benchmark.diffusion.denoiser import Denoiser
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters


@dataclass(frozen=True, kw_only=True)
class Withhold(Defense):
    """Hyper-parameters.

    Attributes:
        layers: text that the names of the withheld parameters contain, e.g. `time_emb`.
    """

    layers: str = "time_emb"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers:
            raise ValueError("layers must name the layers to withhold, e.g. time_emb")

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`: return a copy of the network in which the withheld parameters are frozen."""
        names = [name for name, p in network.named_parameters() if p.requires_grad]
        withheld = [name for name in names if self.layers in name]
        if not withheld:
            sections = sorted({".".join(name.split(".")[1:2]) for name in names})
            raise UserError(
                f"withhold names no layer: no parameter has '{self.layers}' in its name; the model has {', '.join(sections)}"
            )
        if len(withheld) == len(names):
            raise UserError(f"withhold[layers={self.layers}] leaves nothing to train")
        network = copy.deepcopy(network)
        for name in withheld:
            network.get_parameter(name).requires_grad_(False)
        return network

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(withheld=self.layers)
