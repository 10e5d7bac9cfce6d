"""The metrics of the benchmark, listed in `METRICS` at the end.

MSE, PSNR and SSIM work on images that are clipped to [-1, 1] and mapped to [0, 1], so the peak of PSNR is 1. LPIPS takes the
clipped images in [-1, 1].
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
from benchmark.evaluation.metric import ColumnWidth, Direction, Level, Measure, Metric, TableColumn

PSNR_CAP = 100.0
"""Largest PSNR in dB. An exact reconstruction gets this value, so that a mean stays finite."""

MIN_LPIPS_SIDE = 64
"""Smallest side in pixels for LPIPS. Smaller images are scaled up to it (bilinear), since AlexNet needs more than 25 pixels."""

_LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


def mse(a: Tensor, b: Tensor) -> float:
    """Return the mean squared error of two (C, H, W) images after mapping them from [-1, 1] to [0, 1]."""
    return float(np.square(to_unit(a) - to_unit(b)).mean())


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two (C, H, W) images in dB, with peak 1 on [0, 1] images.

    The value is at most `PSNR_CAP` and is symmetric in the arguments.
    """
    error = mse(a, b)
    return min(PSNR_CAP, -10 * float(np.log10(error))) if error > 0 else PSNR_CAP


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity of two (C, H, W) images.

    It is computed by scikit-image with a uniform 7x7 window and data range 1, and averaged over channels.
    """
    from skimage.metrics import structural_similarity

    return float(structural_similarity(to_unit(a), to_unit(b), data_range=1.0, channel_axis=-1))


def lpips_missing() -> str | None:
    """Return why LPIPS cannot be measured on this machine, None if it can. Nothing is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    if not path.is_file():
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) are not in torch's hub cache"
    loaded = _lpips_network(path)
    return loaded if isinstance(loaded, str) else None


def lpips(a: Tensor, b: Tensor) -> float | None:
    """Return LPIPS of two (C, H, W) images (Zhang et al. 2018, arXiv 1801.03924; AlexNet, v0.1).

    The value is None if `lpips_missing` gives a reason. Images smaller than `MIN_LPIPS_SIDE` are scaled up to it first.
    """
    if lpips_missing():
        return None
    network = _lpips_network(Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE)
    return None if isinstance(network, str) else lpips_with(network, a, b)


def lpips_with(network: torch.nn.Module, a: Tensor, b: Tensor) -> float:
    """Return LPIPS of two (C, H, W) images in [-1, 1] under a given network of the `lpips` package."""
    pair = torch.stack([a, b]).detach().cpu().float().clamp(-1, 1)
    if min(pair.shape[-2:]) < MIN_LPIPS_SIDE:
        pair = torch.nn.functional.interpolate(pair, size=MIN_LPIPS_SIDE, mode="bilinear", align_corners=False)
    with torch.no_grad():
        return float(network(pair[:1], pair[1:]))


@cache
def _lpips_network(path: Path) -> torch.nn.Module | str:
    """Return the LPIPS network with the backbone's weights from a file, or why these weights cannot be used."""
    import lpips as package

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # it is filled with random weights first
        warnings.simplefilter("ignore")  # the package calls torchvision in a deprecated way
        network: torch.nn.Module = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for layer, module in _backbone(network):
            module.load_state_dict({name: weights[f"features.{layer}.{name}"] for name in ("weight", "bias")})
    except Exception as error:  # torch's reader of old formats may raise any exception
        # Torch's own message advises to run the code in such a file, so it is not shown.
        reason = "it is not a file of weights" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) in torch's hub cache cannot be read: {reason}"
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        return f"torchvision's AlexNet weights ({_LPIPS_BACKBONE}) in torch's hub cache are not finite"
    return network


def _backbone(network: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the convolutions of AlexNet that LPIPS uses, each after its number in torchvision's network."""
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
        table_columns=(
            TableColumn("PSNR median", "psnr_median", ".1f", ("psnr_ci_low", "psnr_ci_high"), width=ColumnWidth.INTERVAL),
            TableColumn(
                "gain over floor", "psnr_gain", "+.1f", ("psnr_gain_ci_low", "psnr_gain_ci_high"), width=ColumnWidth.INTERVAL
            ),
        ),
        measure=Measure("PSNR", psnr, bounds=(0.0, PSNR_CAP)),
        for_strongest=True,
    ),
    Metric(
        name="ssim",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=("ssim_mean",),
        summarise=summaries.mean("ssim"),
        table_columns=(TableColumn("SSIM", "ssim_mean", ".3f"),),
        measure=Measure("SSIM", ssim, bounds=(-1.0, 1.0)),
    ),
    Metric(
        name="lpips",
        level=Level.IMAGE,
        better=Direction.LOWER,
        columns=("lpips_mean",),
        summarise=summaries.mean("lpips"),
        table_columns=(TableColumn("LPIPS", "lpips_mean", ".3f"),),
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
        table_columns=(
            TableColumn("success", "success_rate", ".0%", ("success_ci_low", "success_ci_high"), width=ColumnWidth.NUMBER),
        ),
        for_strongest=True,
    ),
    Metric(
        name="timestep",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=("timestep_accuracy",),
        summarise=summaries.timestep_accuracy,
        table_columns=(TableColumn("timestep exact", "timestep_accuracy", ".0%", paper=False),),
    ),
    Metric(
        name="privacy",
        level=Level.DEFENSE,
        better=Direction.LOWER,
        columns=("epsilon_round", "epsilon_total", "delta"),
        summarise=summaries.privacy,
        table_columns=(TableColumn("epsilon total", "epsilon_total", ".3g", paper=False),),
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
        table_columns=(TableColumn("noise MSE", "noise_mse_mean", ".2f", paper=False),),
    ),
    Metric(
        name="acceptance",
        level=Level.IMAGE,
        better=Direction.HIGHER,
        columns=("n_accepted", "n_false_accepts", "false_accept_limit"),
        summarise=summaries.acceptance,
        table_columns=(
            TableColumn("accepted", "n_accepted", ".0f", paper=False),
            TableColumn("false accepts, at most", "false_accept_limit", ".1%", paper=False),
        ),
    ),
)
"""All metrics, in the order of their columns in `leaderboard.csv`. Add a new metric at the end, so that no column moves."""


def measures() -> dict[str, Measure]:
    """Return the measurements of an image by the metric's name."""
    return {metric.name: metric.measure for metric in METRICS if metric.measure}
