"""Noise schedule, training loss, U-Net presets and checkpoints, with diffusers underneath."""
