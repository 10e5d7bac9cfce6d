"""Families of networks, one file each; see `benchmark.diffusion.family`."""
