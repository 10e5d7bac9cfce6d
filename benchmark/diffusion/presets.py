"""The U-Net architectures that ship, as plain numbers: listing them imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """An architecture: what is passed to diffusers' `UNet2DModel`, and one line for people."""

    summary: str
    image_size: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]


PRESETS = {
    "tiny": Preset(
        "16x16, blocks (32, 64), attention at 8x8, 0.7 M parameters, random init",
        16,
        (32, 64),
        ("DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D"),
    ),
    "small": Preset(
        "32x32, blocks (32, 64, 64), attention at 8x8, 1.1 M parameters, random init",
        32,
        (32, 64, 64),
        ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ),
}
