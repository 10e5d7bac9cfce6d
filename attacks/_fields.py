"""Random images with a spectrum like that of photographs, for an attacker who has no photographs.

In photographs the amplitude of a frequency f falls about as 1/f (Field 1987, J. Opt. Soc. Am. A 4, 2379). In these random
fields it falls faster, as f^-1.5, which makes large shapes stronger. Their channels are mostly alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SPECTRAL_EXPONENT, CONTRAST, SHARED_VARIANCE = 1.5, 0.4, 0.9
"""The exponent of the amplitudes, the standard deviation of a value, and the share of its variance that all channels share."""


def fields(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw Gaussian random fields (..., C, H, W) of mean zero, on the CPU.

    Each field is cut out of a periodic field with sides twice as long, so opposite borders do not match.
    """
    *many, channels, height, width = shape
    white = SHARED_VARIANCE**0.5 * torch.randn(*many, 1, 2 * height, 2 * width, generator=generator)
    white = white + (1 - SHARED_VARIANCE) ** 0.5 * torch.randn(*many, channels, 2 * height, 2 * width, generator=generator)
    f = torch.hypot(torch.fft.fftfreq(2 * height)[:, None], torch.fft.rfftfreq(2 * width))
    amplitude = torch.where(f > 0, f.clamp(min=1e-9) ** -SPECTRAL_EXPONENT, 0)
    field = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, (2 * height, 2 * width))[..., :height, :width]
    scaled: Tensor = CONTRAST * field / _deviation(amplitude, width)
    return scaled


def _deviation(amplitude: Tensor, width: int) -> Tensor:
    """Return the standard deviation of a value of the large field, by Parseval's theorem.

    Each column of a real transform except the first and the last counts twice.
    """
    twice = torch.full((width + 1,), 2.0)
    twice[[0, -1]] = 1
    variance: Tensor = (amplitude.square() * twice).sum() / (amplitude.shape[0] * 2 * width)
    return variance.sqrt()
