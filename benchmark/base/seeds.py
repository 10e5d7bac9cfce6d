"""Random streams with names: every seed is a hash of the axes that it may depend on, and of nothing else."""

import hashlib
import json

import torch


def seed(base: int, *axes: object) -> int:
    """A seed in [0, 2**63) that depends on `base` and on the axes (JSON-serialisable) in their order."""
    text = json.dumps([base, *axes], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(base: int, *axes: object) -> torch.Generator:
    """A fresh CPU generator for the named axes. It lives on the CPU so that every device sees the same draws."""
    return torch.Generator().manual_seed(seed(base, *axes))
