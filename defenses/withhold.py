"""Named layers are frozen on the client, so that nothing of them leaves it.

Source: ours, the answer to what is read in closed form from single layers

The parameters whose names contain `layers` are neither trained nor sent; the server must train them on other data. `time_emb`
names the time embedding and every layer that takes it up, `time_embedding` its own two layers alone, `conv_out` the output
convolution.
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
    """Parameters.

    Attributes:
        layers: part of the names of the parameters that stay.
    """

    layers: str = "time_emb"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers:
            raise ValueError("layers must name the layers to withhold, e.g. time_emb")

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`."""
        names = [name for name, p in network.named_parameters() if p.requires_grad]
        withheld = [name for name in names if self.layers in name]
        if not withheld:
            rooms = sorted({".".join(name.split(".")[1:2]) for name in names})
            raise UserError(f"withhold names no layer: no parameter has '{self.layers}' in its name, under {', '.join(rooms)}")
        if len(withheld) == len(names):
            raise UserError(f"withhold[layers={self.layers}] leaves nothing to train")
        network = copy.deepcopy(network)
        for name in withheld:
            network.get_parameter(name).requires_grad_(False)
        return network

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(withheld=self.layers)
