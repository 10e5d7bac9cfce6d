"""The family of `UNet2DModel`, the unconditional U-Net of diffusers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from benchmark.base.errors import UserError, shown
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.family import CHANNELS, SIZES, Family
from benchmark.diffusion.landmarks import Landmarks
from benchmark.diffusion.process import Mixture
from benchmark.diffusion.schedulers import quiet_diffusers

if TYPE_CHECKING:
    from diffusers import UNet2DModel

MAX_SETTING = 65_536
"""Largest whole number accepted in config.json: more channels, layers or groups are a mistake."""

MAX_LAYERS = 64
"""Largest number of residual layers in a block: more are a mistake, and take minutes to build."""

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Current names of the parts of an attention layer, by their names before diffusers 0.13, as in Google's DDPM checkpoints."""

EMBEDDING_LAYER = "unet.time_embedding.linear_1"
PROJECTION_SUFFIX = ".time_emb_proj"
DECODER_MODULE = re.compile(r"\.up_blocks\b|\.conv_norm_out\b|\.conv_out\b")
"""Names of modules in the decoder, where the skip connections join, and after it."""


class UNet2D(Denoiser):
    """A `UNet2DModel` as a function of (x_t, t).

    Gradient matching differentiates twice, and fused attention has no second derivative. So every attention layer gets the
    plain processor of diffusers.

    Attributes:
        unet: the network.
    """

    part: ClassVar[str] = "unet"
    supports_mixtures: ClassVar[bool] = True
    unet: UNet2DModel

    def __init__(self, network: UNet2DModel, times: Tensor) -> None:
        super().__init__(network, times)
        for module in network.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(AttnProcessor())

    def predict(self, x_t: Tensor, times: Tensor) -> Tensor:
        """See `Denoiser.predict`."""
        return cast(Tensor, self.unet(x_t, times).sample)

    def predict_mixture(self, x_t: Tensor, t: Mixture) -> Tensor:
        """See `Denoiser.predict_mixture`. A copy of the U-Net shares its layers and gets the mixture as the embedding."""
        embeddings: Tensor = self.unet.time_proj(self.times)
        unet = copy.copy(self.unet)
        vars(unet)["_modules"] = {**unet._modules, "time_proj": _Constant(t.average(embeddings.to(t.weights.dtype)))}
        return cast(Tensor, unet(x_t, self.times[:1].expand(len(x_t))).sample)

    @property
    def landmarks(self) -> Landmarks:
        """See `Denoiser.landmarks`."""
        names = [name for name, _ in self.named_modules()]
        return Landmarks(
            embedding=EMBEDDING_LAYER,
            projections=tuple(name for name in names if name.endswith(PROJECTION_SUFFIX)),
            inputs=self._time_inputs,
            encoder=frozenset(name for name in names if not DECODER_MODULE.search(name)),
        )

    @torch.no_grad()
    def _time_inputs(self, layer: str) -> Tensor:
        embedding: Tensor = self.unet.time_proj(self.times)
        if layer == EMBEDDING_LAYER:
            return embedding
        block = self.get_submodule(layer.removesuffix(PROJECTION_SUFFIX))
        projection_input: Tensor = block.nonlinearity(self.unet.time_embedding(embedding))  # type: ignore[operator]
        return projection_input


class _Constant(nn.Module):
    """A layer that returns one fixed tensor for every input."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


class UNet2DFamily(Family):
    """The family of `UNet2DModel`."""

    name = "UNet2DModel"
    denoiser = UNet2D

    def size(self, config: Mapping[str, object], what: str) -> tuple[int, int]:
        """See `Family.size`: a U-Net halves the side of the image from one resolution to the next."""
        _check_settings(config, what)
        size, stride = _image_size(config, what), _stride(config, what)
        if size % stride:
            raise UserError(f"{what} is for images of {size}x{size}, and its {stride}-fold downsampling does not divide that")
        return size, stride

    def network(self, config: Mapping[str, object]) -> UNet2DModel:
        """See `Family.network`."""
        from diffusers import UNet2DModel

        with quiet_diffusers():
            return UNet2DModel.from_config(dict(config))

    def renamed(self, tensor: str) -> str:
        """See `Family.renamed`."""
        layer, _, kind = tensor.rpartition(".")
        parent, _, part = layer.rpartition(".")
        return f"{parent}.{OLD_ATTENTION[part]}.{kind}" if "attentions" in parent and part in OLD_ATTENTION else tensor


FAMILY = UNet2DFamily()


def _check_settings(values: Mapping[str, object], what: str) -> None:
    """Refuse a network that is conditional, in continuous time, implausibly large, or not from images to images."""
    for name, meaning in (("in_channels", "takes"), ("out_channels", "gives")):
        channels = values.get(name, CHANNELS)
        if channels != CHANNELS:
            learned = " (it learns the variance)" if name == "out_channels" and channels == 2 * CHANNELS else ""
            raise UserError(f"{what} {meaning} {shown(channels)} channels{learned}, and images have {CHANNELS}")
    if values.get("num_class_embeds") is not None or values.get("class_embed_type") is not None:
        raise UserError(f"{what} is conditional on a class; only unconditional networks are supported")
    embedding = values.get("time_embedding_type", "positional")
    if embedding not in ("positional", "learned"):
        raise UserError(
            f"{what} has the time embedding {shown(embedding)}, of a process in continuous time; that is not supported"
        )
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > MAX_SETTING:
                raise UserError(f"{what}: {name} is {number}, larger than the limit of {MAX_SETTING}")
    layers = values.get("layers_per_block", 2)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise UserError(f"{what}: layers_per_block should be from 1 to {MAX_LAYERS}, not {shown(layers)}")


def _image_size(values: Mapping[str, object], what: str) -> int:
    size = values.get("sample_size")
    side = size[0] if isinstance(size, list) and size and all(other == size[0] for other in size) else size
    if isinstance(side, bool) or not isinstance(side, int) or side not in SIZES:
        raise UserError(
            f"{what} must have a square image size (sample_size in config.json, from {SIZES[0]} to {SIZES[-1]}), "
            f"not {shown(size)}"
        )
    return side


def _stride(values: Mapping[str, object], what: str) -> int:
    channels = values.get("block_out_channels")
    if not isinstance(channels, list) or not 1 <= len(channels) <= 10 or not all(type(c) is int and c > 0 for c in channels):
        raise UserError(f"{what} must list the channels of 1 to 10 resolutions (block_out_channels), not {shown(channels)}")
    return 1 << (len(channels) - 1)
