"""Diffusion models: process, network families, codec, landmarks, loss, presets, checkpoints and training."""
