"""The network as client and server both hold it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class Denoiser(nn.Module):
    """A diffusers U-Net as a plain function of (x_t, t), always in evaluation mode: client and attacker see one function.

    Gradient matching differentiates twice, and fused attention has no second derivative, so every attention layer gets
    diffusers' plain processor.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet
        for module in unet.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(AttnProcessor())
        unet.time_proj.register_forward_hook(_mix)
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction for noisy images `x_t` (B, C, H, W) at timesteps `t` (B,), of the images' shape.

        Weights `t` (B, T) over the timesteps mix their embeddings before the first layer that learns.
        """
        if not t.is_floating_point():
            return cast(Tensor, self.unet(x_t, t).sample)
        token = _weights.set(t)
        try:
            return cast(Tensor, self.unet(x_t, torch.zeros(len(t), dtype=torch.int64, device=t.device)).sample)
        finally:
            _weights.reset(token)

    @property
    def device(self) -> str:
        """The device of the parameters."""
        return str(next(self.parameters()).device)


_weights: ContextVar[Tensor | None] = ContextVar("weights", default=None)
"""Weights (B, T) over the timesteps of the forward pass under way; each thread has its own."""


def _mix(time_projection: nn.Module, inputs: object, embedding: Tensor) -> Tensor:
    """In place of the embedding of one timestep, the mixture of all of them where weights are given."""
    t = _weights.get()
    if t is None:
        return embedding
    every: Tensor = time_projection.forward(torch.arange(t.shape[1], device=t.device))
    return t @ every.to(t.dtype)
