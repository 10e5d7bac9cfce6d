"""The network as client and server both hold it."""

from __future__ import annotations

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
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction for noisy images `x_t` (B, C, H, W) at timesteps `t` (B,), of the images' shape.

        Weights `t` (B, T) over the timesteps mix their embeddings before the first layer that learns.
        """
        if not t.is_floating_point():
            return cast(Tensor, self.unet(x_t, t).sample)
        embedding = self.unet.time_proj(torch.arange(t.shape[1], device=t.device)).to(t.dtype)
        handle = self.unet.time_proj.register_forward_hook(lambda *_: t @ embedding)
        try:
            return cast(Tensor, self.unet(x_t, torch.zeros(len(t), dtype=torch.int64, device=t.device)).sample)
        finally:
            handle.remove()

    @property
    def device(self) -> str:
        """The device of the parameters."""
        return str(next(self.parameters()).device)
