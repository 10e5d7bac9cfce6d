"""Random images whose spectrum falls as that of photographs does, for an attacker who has none.

Photographs share how the amplitudes of their frequencies fall, about as 1/f (Field 1987, J. Opt. Soc. Am. A 4, 2379). Those
of the fields fall faster, as f^-1.5, so that more of them is in large shapes, and their channels are mostly alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FALL, CONTRAST, SHARED = 1.5, 0.4, 0.9
"""Exponent of the amplitudes, standard deviation of a value, and the share of its variance that all channels have in common."""


def fields(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian fields (..., C, H, W) of mean zero, cut out of ones twice as large a side, which are periodic. On the CPU."""
    *many, channels, height, width = shape
    white = SHARED**0.5 * torch.randn(*many, 1, 2 * height, 2 * width, generator=generator)
    white = white + (1 - SHARED) ** 0.5 * torch.randn(*many, channels, 2 * height, 2 * width, generator=generator)
    f = torch.hypot(torch.fft.fftfreq(2 * height)[:, None], torch.fft.rfftfreq(2 * width))
    amplitude = torch.where(f > 0, f.clamp(min=1e-9) ** -FALL, 0)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, (2 * height, 2 * width))[..., :height, :width]
    scaled: Tensor = CONTRAST * field / _deviation(amplitude, width)
    return scaled


def _deviation(amplitude: Tensor, width: int) -> Tensor:
    """Of a value of the large field, by Parseval: each column of a real transform but the first and last stands for two."""
    twice = torch.full((width + 1,), 2.0)
    twice[[0, -1]] = 1
    variance: Tensor = (amplitude.square() * twice).sum() / (amplitude.shape[0] * 2 * width)
    return variance.sqrt()
