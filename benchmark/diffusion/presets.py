"""The U-Net architectures of the package, as plain numbers, so that listing them imports no heavy package."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar


@dataclass(frozen=True)
class Preset:
    """An architecture: a configuration of diffusers' `UNet2DModel` with a one-line description.

    Attributes:
        family: the class of the network.
        summary: the description.
        sample_size: side of the square images, in pixels.
        block_out_channels: channels at each resolution.
        down_block_types: diffusers' names of the encoder's blocks.
        up_block_types: diffusers' names of the decoder's blocks.
        layers_per_block: residual layers in each block.
        norm_num_groups: groups of each group normalisation.
        attention_head_dim: channels of an attention head, None for a single head.
        freq_shift: frequency shift of the sinusoidal time embedding, as in diffusers.
        flip_sin_to_cos: whether that embedding begins with cosines.
        norm_eps: epsilon of each normalisation.
        downsample_padding: padding of each strided convolution.
    """

    family: ClassVar[str] = "UNet2DModel"

    summary: str
    sample_size: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int = 1
    norm_num_groups: int = 8
    attention_head_dim: int | None = 8
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    norm_eps: float = 1e-5
    downsample_padding: int = 1

    @property
    def config(self) -> Mapping[str, object]:
        """Return the configuration in the form of config.json."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}
        del fields["summary"]
        return fields


_google_preset = partial(
    Preset,
    layers_per_block=2,
    norm_num_groups=32,
    attention_head_dim=None,
    freq_shift=1,
    flip_sin_to_cos=False,
    norm_eps=1e-6,
    downsample_padding=0,
)
"""A preset with the settings that Google's DDPM checkpoints share."""

PRESETS = {
    "tiny": Preset(
        "16x16, blocks (32, 64), attention at 8x8, 0.7 M parameters",
        16,
        (32, 64),
        ("DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D"),
    ),
    "small": Preset(
        "32x32, blocks (32, 64, 64), attention at 8x8, 1.1 M parameters",
        32,
        (32, 64, 64),
        ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ),
    "small-128": Preset(
        "128x128, blocks (32, 64, 64, 64, 64): `small` with two levels more, attention at 8x8 again, 1.9 M parameters",
        128,
        (32, 64, 64, 64, 64),
        ("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    ),
    "ddpm-cifar10": _google_preset(
        "32x32, the architecture of google/ddpm-cifar10-32, 35.7 M parameters",
        32,
        (128, 256, 256, 256),
        ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
    "ddpm-celebahq-256": _google_preset(
        "256x256, the architecture of google/ddpm-celebahq-256, 113.7 M parameters",
        256,
        (128, 128, 256, 256, 512, 512),
        ("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    ),
    "wide-128": Preset(
        "128x128, blocks (64, 128, 256, 512) after the GIDM reference code, attention at 16x16, 61.8 M parameters",
        128,
        (64, 128, 256, 512),
        ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=32,
    ),
}
