"""Diffusion models: process, networks by family, codec, landmarks, loss, presets, checkpoints and training."""
