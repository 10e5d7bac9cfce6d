"""How close a reconstruction is, always on images clipped to [-1, 1] and mapped to [0, 1], so the peak of PSNR is 1.

`METRICS` at the end lists everything that the bench measures.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.base.errors import first_line
from benchmark.base.images import to_unit
from benchmark.evaluation import summaries
from benchmark.evaluation.metric import Direction, Level, Measure, Metric, Room, Shown

PSNR_CAP = 100.0
"""dB: an exact image counts as this much, so that one of them does not make a mean infinite."""

LPIPS_SMALLEST = 64
"""Pixels: LPIPS' AlexNet needs images larger than 25, so smaller ones than this are scaled up to it (bilinear)."""

_LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


def mse(a: Tensor, b: Tensor) -> float:
    """Mean squared error of two (C, H, W) images in units of the range [0, 1]."""
    return float(np.square(to_unit(a) - to_unit(b)).mean())


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, peak 1 on [0, 1] images, at most `PSNR_CAP`; symmetric in its arguments."""
    error = mse(a, b)
    return min(PSNR_CAP, -10 * float(np.log10(error))) if error > 0 else PSNR_CAP


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two (C, H, W) images by scikit-image: 7x7 uniform window, data range 1, mean of channels."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(to_unit(a), to_unit(b), data_range=1.0, channel_axis=-1))


def lpips_missing() -> str | None:
    """Return why LPIPS cannot be measured on this machine, None where it can. Nothing is ever downloaded for it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    if not path.is_file():
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) are not in torch's hub cache"
    loaded = _lpips_network(path)
    return loaded if isinstance(loaded, str) else None


def lpips(a: Tensor, b: Tensor) -> float | None:
    """Return LPIPS of two (C, H, W) images (Zhang et al. 2018, arXiv 1801.03924; AlexNet, v0.1), None where `lpips_missing`.

    Images smaller than `LPIPS_SMALLEST` are scaled up to it first.
    """
    if lpips_missing():
        return None
    network = _lpips_network(Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE)
    return None if isinstance(network, str) else lpips_with(network, a, b)


def lpips_with(network: torch.nn.Module, a: Tensor, b: Tensor) -> float:
    """Return LPIPS under a given network of the `lpips` package, which takes images in [-1, 1]."""
    pair = torch.stack([a, b]).detach().cpu().float().clamp(-1, 1)
    if min(pair.shape[-2:]) < LPIPS_SMALLEST:
        pair = torch.nn.functional.interpolate(pair, size=LPIPS_SMALLEST, mode="bilinear", align_corners=False)
    with torch.no_grad():
        return float(network(pair[:1], pair[1:]))


@cache
def _lpips_network(path: Path) -> torch.nn.Module | str:
    """Return the network with the backbone's weights from a file, or why they cannot be used."""
    import lpips as package

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # it is filled with random weights first
        warnings.simplefilter("ignore")  # the package calls torchvision in a way that is no longer wished
        network: torch.nn.Module = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for layer, module in _backbone(network):
            module.load_state_dict({name: weights[f"features.{layer}.{name}"] for name in ("weight", "bias")})
    except Exception as error:  # the reader of an old format fails in any way
        # Torch advises to run the code in such a file.
        reason = "it is no file of weights" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) in torch's hub cache cannot be read: {reason}"
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) in torch's hub cache are not finite"
    return network


def _backbone(network: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the convolutions of AlexNet that LPIPS uses, with their numbers in torchvision's network."""
    for part in network.net.children():  # type: ignore[union-attr]
        yield from ((layer, module) for layer, module in part.named_children() if isinstance(module, torch.nn.Conv2d))


METRICS: tuple[Metric, ...] = (
    Metric(
        name="psnr",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=(
            *("psnr_median", "psnr_mean", "psnr_ci_low", "psnr_ci_high"),
            *("psnr_gain", "psnr_gain_ci_low", "psnr_gain_ci_high"),
        ),
        summarise=summaries.psnr,
        shown=(
            Shown("PSNR median", "psnr_median", ".1f", ("psnr_ci_low", "psnr_ci_high"), room=Room.INTERVAL),
            Shown("gain over floor", "psnr_gain", "+.1f", ("psnr_gain_ci_low", "psnr_gain_ci_high"), room=Room.INTERVAL),
        ),
        measure=Measure("PSNR", psnr, bounds=(0.0, PSNR_CAP)),
        chosen=True,
    ),
    Metric(
        name="ssim",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=("ssim_mean",),
        summarise=summaries.mean("ssim"),
        shown=(Shown("SSIM", "ssim_mean", ".3f"),),
        measure=Measure("SSIM", ssim, bounds=(-1.0, 1.0)),
    ),
    Metric(
        name="lpips",
        level=Level.IMAGE,
        better=Direction.LOWER,
        columns=("lpips_mean",),
        summarise=summaries.mean("lpips"),
        shown=(Shown("LPIPS", "lpips_mean", ".3f"),),
        measure=Measure("LPIPS", lpips, missing=lpips_missing),
    ),
    Metric(
        name="mse",
        level=Level.IMAGE,
        better=Direction.LOWER,
        columns=("mse_mean",),
        summarise=summaries.mean("mse"),
        measure=Measure("MSE", mse, bounds=(0.0, 1.0)),
    ),
    Metric(
        name="success",
        level=Level.CELL,
        better=Direction.HIGHER,
        columns=("success_rate", "success_ci_low", "success_ci_high"),
        summarise=summaries.success,
        shown=(Shown("success", "success_rate", ".0%", ("success_ci_low", "success_ci_high"), room=Room.NUMBER),),
        chosen=True,
    ),
    Metric(
        name="timestep",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=("timestep_accuracy",),
        summarise=summaries.timestep_accuracy,
        shown=(Shown("timestep exact", "timestep_accuracy", ".0%", paper=False),),
    ),
    Metric(
        name="privacy",
        level=Level.DEFENSE,
        better=Direction.LOWER,
        columns=("epsilon_round", "epsilon_total", "delta"),
        summarise=summaries.privacy,
        shown=(Shown("epsilon total", "epsilon_total", ".3g", paper=False),),
    ),
    Metric(
        name="seconds",
        level=Level.CELL,
        better=Direction.LOWER,
        columns=("seconds_per_victim",),
        summarise=summaries.seconds_per_victim,
    ),
    Metric(
        name="evaluations",
        level=Level.CELL,
        better=Direction.LOWER,
        columns=("evaluations",),
        summarise=summaries.evaluations,
    ),
    Metric(
        name="noise_mse",
        level=Level.IMAGE,
        better=Direction.LOWER,
        columns=("noise_mse_mean",),
        summarise=summaries.mean("noise_mse"),
        shown=(Shown("noise MSE", "noise_mse_mean", ".2f", paper=False),),
    ),
)
"""Every metric, in the order of the columns of `leaderboard.csv`: a new one goes to the end, so that these stay in place."""


def measures() -> dict[str, Measure]:
    """Return how an image's pictures are measured, by the metric's name."""
    return {metric.name: metric.measure for metric in METRICS if metric.measure}
