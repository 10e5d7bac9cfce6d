"""Low-rank adapters: the client trains small matrices beside frozen attention layers, and sends only these matrices.

Source: after the abstract of Hu et al. 2022 (arXiv 2106.09685), as implemented by peft

Each linear map W in the attention of the U-Net gets two adapters, A (rank, in) and B (out, rank). The layer computes W + (alpha
/ rank) B A with alpha = rank. As in peft, A starts at random and B at zero. In the first round the gradient of A is therefore
zero, and the gradient of B is the gradient of W, projected by A to `rank` dimensions on the input side. Server and client have
the same A.

Needs peft (`pip install 'gidbench[lora]'`) and a model with attention. Cost: one pass through the network with its adapters.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch

from benchmark.base.errors import UserError
from benchmark.base.ranges import Count
from benchmark.diffusion.denoiser import Denoiser
from benchmark.plugins import Defense
from benchmark.scenario import Scenario
from benchmark.types import PublicParameters

ADAPTED_LAYERS = r".*\.(to_q|to_k|to_v|to_out\.0)"
"""Pattern of the names that diffusers gives to the linear maps of an attention block."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Defense):
    """Hyper-parameters.

    Attributes:
        rank: rank of the adapters.
    """

    rank: Count = 4

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """See `Defense.prepare`: return a copy of the network with adapters, the only parameters that are trained."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise UserError("lora needs peft: pip install 'gidbench[lora]'") from error
        if not any(re.fullmatch(ADAPTED_LAYERS, name) for name, _ in network.named_modules()):
            raise UserError("lora: the model has no attention layers to adapt")
        if any(not p.requires_grad for p in network.parameters()):
            raise UserError("lora freezes everything except its adapters, so no layer can be withheld before it")
        network = copy.deepcopy(network)
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=ADAPTED_LAYERS, init_lora_weights=True)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            inject_adapter_in_model(config, network.body)
        return network.eval()

    def public(self, scenario: Scenario) -> PublicParameters:
        """See `Defense.public`."""
        return PublicParameters(adapter_rank=self.rank)
