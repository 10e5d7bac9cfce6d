"""Families of networks, one file for each; see `benchmark.diffusion.family`."""
