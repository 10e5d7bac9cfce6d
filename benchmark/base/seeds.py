"""Named random streams. Every seed is a hash of a base seed and of the axes on which the stream depends."""

import hashlib
import json

import torch


def seed(base: int, *axes: object) -> int:
    """Return a seed in [0, 2**63) that depends on `base` and on the axes (JSON-serialisable) in their order."""
    text = json.dumps([base, *axes], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(base: int, *axes: object) -> torch.Generator:
    """Return a new generator for the named axes. It is on the CPU, so that every device uses the same draws."""
    return torch.Generator().manual_seed(seed(base, *axes))
