"""The judge, which compares reconstructions with the private images.

The judge assigns reconstructed images to the originals of the same victim, clips them, and measures them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmark.evaluation.assignment import assign, clipped, validated, why_diverged
from benchmark.evaluation.metrics import measures
from benchmark.types import Reconstruction, Victim


@dataclass(frozen=True, eq=False)
class Sample:
    """One private image and its reconstruction: a row of `samples.parquet`.

    Attributes:
        victim: index of the round within the trial.
        image: index of the image in its round: client by client, step by step.
        source: the photograph that the image comes from.
        status: `ok` or `diverged`.
        reason: why the image diverged; otherwise the attack's note on how it ran.
        measured: one value per entry of `metrics.measures`, None if it cannot be measured or the image diverged.
        success: whether the PSNR reached the threshold.
        timestep: the true timestep.
        timestep_estimate: the attack's estimate of the timestep, None if it makes none.
        timestep_error: absolute difference of `timestep` and `timestep_estimate`.
        noise_mse: mean squared error of the attack's estimate of the noise, None if it makes none. The true noise has
            variance 1, so an estimate of 0 scores 1 and an independent draw scores 2.
        predicted_psnr: the PSNR in dB that the attack predicted without the truth, None if it predicts none.
        accepted: whether the prediction reaches the threshold of success, None if there is none.
        loss: the attack's matching loss for all images of the victim.
        evaluations: number of evaluations that the attack spent on all images of the victim.
        original: (H, W, C) float32 in [-1, 1].
        reconstruction: (H, W, C) float32, clipped to [-1, 1].
    """

    victim: int
    image: int
    source: str
    status: str
    reason: str
    measured: Mapping[str, float | None]
    success: bool
    timestep: int
    timestep_estimate: int | None
    timestep_error: int | None
    noise_mse: float | None
    predicted_psnr: float | None
    accepted: bool | None
    loss: float | None
    evaluations: int
    original: NDArray[np.float32]
    reconstruction: NDArray[np.float32]


def judge(
    victims: Sequence[Victim],
    reconstructions: Sequence[Reconstruction],
    success_db: float,
    decode: Callable[[Tensor], Tensor] = lambda codes: codes,
    updates_per_round: int = 1,
    redrawn: bool = False,
) -> list[Sample]:
    """Measure every image of every victim.

    Args:
        victims: one victim per update: round by round, update by update.
        reconstructions: one reconstruction per victim, in the same order.
        success_db: PSNR in dB from which an image counts as recovered.
        decode: maps what an attack reconstructs to images; the identity if that is pixels.
        updates_per_round: number of updates that the server receives per round. Images are numbered through the whole round.
        redrawn: whether clients trained on other timesteps and noise than the victim's. If so, the attack's estimates of them
            cannot be judged and are removed.

    Returns:
        One sample per private image, in the order of `victims`.

    Raises:
        ValueError: the attack returned a wrong number of reconstructions, or an invalid one.
    """
    if len(victims) != len(reconstructions):
        raise ValueError(f"the attack returned {len(reconstructions)} reconstructions for {len(victims)} victims")
    samples: list[Sample] = []
    for index, (victim, returned) in enumerate(zip(victims, reconstructions, strict=True)):
        number, update = divmod(index, updates_per_round)
        judged = _judge_update(number, update * len(victim.images), victim, validated(victim, returned, decode), success_db)
        samples += [_without_estimates(sample) for sample in judged] if redrawn else judged
    return samples


def _without_estimates(sample: Sample) -> Sample:
    return dataclasses.replace(sample, timestep_estimate=None, timestep_error=None, noise_mse=None)


@dataclass(frozen=True, eq=False)
class _JudgedUpdate:
    """The values that all images of one update share.

    Attributes:
        number: index of the round.
        first: index of the update's first image within the round.
        victim: the private images of the update.
        reconstruction: the attack's reconstruction of them.
        reason: why the reconstruction is not valid, None if it is.
        success_db: PSNR in dB from which an image counts as recovered.
    """

    number: int
    first: int
    victim: Victim
    reconstruction: Reconstruction
    reason: str | None
    success_db: float


def _judge_update(number: int, first: int, victim: Victim, reconstruction: Reconstruction, success_db: float) -> list[Sample]:
    """Judge one update of round `number`. The numbers of its images start at `first`."""
    images, reason = reconstruction.images, why_diverged(reconstruction)
    order = assign(victim.images, images) if reason is None else np.arange(len(images))
    judged = _JudgedUpdate(number, first, victim, reconstruction, reason, success_db)
    return [_sample(judged, i, int(j)) for i, j in enumerate(order)]


def _sample(judged: _JudgedUpdate, i: int, j: int) -> Sample:
    """Measure image `i` of the victim against image `j` of the reconstruction."""
    victim, reconstruction, ok = judged.victim, judged.reconstruction, judged.reason is None
    truth, image = victim.images[i], clipped(reconstruction.images[j])
    timestep = int(victim.timesteps[i])
    estimate = None if reconstruction.timesteps is None or not ok else int(reconstruction.timesteps[j])
    noise = None if reconstruction.noise is None or not ok else reconstruction.noise[j]
    predicted = None if reconstruction.predicted_psnr is None or not ok else float(reconstruction.predicted_psnr[j])
    measured = {name: measure.of(truth, image) if ok else None for name, measure in measures().items()}
    psnr = measured["psnr"]
    return Sample(
        victim=judged.number,
        image=judged.first + i,
        source=victim.sources[i],
        status="ok" if ok else "diverged",
        reason=judged.reason or reconstruction.note,
        measured=measured,
        success=psnr is not None and psnr >= judged.success_db,
        timestep=timestep,
        timestep_estimate=estimate,
        timestep_error=None if estimate is None else abs(estimate - timestep),
        noise_mse=None if noise is None else float((noise - victim.noise[i]).square().mean()),
        predicted_psnr=predicted,
        accepted=None if predicted is None else predicted >= judged.success_db,
        loss=reconstruction.loss,
        evaluations=reconstruction.evaluations,
        original=truth.movedim(0, -1).numpy().copy(),
        reconstruction=image.movedim(0, -1).numpy().copy(),
    )
