"""Random fields with a falling spectrum."""

import torch

from benchmark.attacks._fields import CONTRAST, SHARED_VARIANCE, SPECTRAL_EXPONENT, fields
from benchmark.base.seeds import stream


def draw_fields(size: int = 32, channels: int = 3) -> torch.Tensor:
    return fields((400, channels, size, size), stream(0, "fields"))


def test_values_have_the_stated_deviation_and_mean_zero():
    values = draw_fields()
    assert abs(float(values.std()) / CONTRAST - 1) < 0.05
    assert abs(float(values.mean())) < 0.05


def test_channels_share_the_stated_variance():
    """The correlation of two channels is the share of the variance that they have in common."""
    correlation = torch.corrcoef(draw_fields().transpose(0, 1).flatten(1))[0, 1]
    assert abs(float(correlation) - SHARED_VARIANCE) < 0.03


def test_amplitudes_fall_as_stated():
    """Far from both ends of the spectrum, the power falls by 4^-SPECTRAL_EXPONENT per octave."""
    windowed = draw_fields(128, channels=1)[:, 0] * torch.outer(torch.hann_window(128), torch.hann_window(128))
    power, f = (
        torch.fft.rfft2(windowed).abs().square().mean(0),
        torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)),
    )
    low, high = (power[(f > at * 0.9) & (f < at * 1.1)].mean() for at in (0.08, 0.16))
    assert abs(float(high / low) / 4**-SPECTRAL_EXPONENT - 1) < 0.15


def test_fields_have_any_requested_shape():
    assert fields((2, 5, 1, 6, 10), stream(0, "shape")).shape == (2, 5, 1, 6, 10)
