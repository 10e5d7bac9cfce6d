"""Say what an update can reveal before anything is searched: timesteps, ranks, noise, pruning and rounding.

Almost everything comes from values and from singular values. The singular values are square roots of eigenvalues of Gram
matrices in float64, which keep eight digits of the largest one. Timesteps that cannot be read so are tried again with the
losses that the defense states. Nothing is drawn at random. Cost: one pass of a blank image through the network, and one
eigenvalue problem of the smaller side of each gradient, on the CPU; and some passes over an update that is no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmark.closed_form.losses import is_lossy, measurements
from benchmark.closed_form.sites import is_signal, sites, spans_patches
from benchmark.closed_form.timesteps import RepeatedTimesteps, UnreadableTimesteps, read_timesteps
from benchmark.diffusion.landmarks import Landmarks, landmarks
from benchmark.matching.problem import why_unmatchable
from benchmark.outlook import Diagnosis, Layer
from benchmark.types import Observation, Update

MAX_VALUES = 2**16
"""Number of coordinates of a tensor of which distinct values are counted."""

ROUNDED = 0.5
"""Share of distinct values among the nonzero ones below which a tensor counts as rounded. Values in float32 hardly repeat."""


def diagnose(observation: Observation) -> Diagnosis:
    """Return what an update can reveal.

    An update that cannot be matched (`why_unmatchable`) or a network without landmarks gives a diagnosis without layers.
    """
    problem, (timesteps, unreadable, repeated) = why_unmatchable(observation), _timesteps(observation)
    adaptive_timesteps, adaptive_unreadable = timesteps, unreadable
    if timesteps is None and not problem and is_lossy(observation):
        adaptive_timesteps, adaptive_unreadable, _ = _timesteps(observation, adaptive=True)
    marks = None if problem else landmarks(observation.network)
    spectra = dict(_spectra(observation, marks)) if marks else {}
    time_names = {marks.embedding, *marks.projections} if marks else set()
    return Diagnosis(
        images=observation.image_count,
        pixels=math.prod(observation.image_shape),
        coordinates=sum(value.numel() for value in observation.update.values()),
        local_steps=observation.local_steps,
        order_known=observation.order_known,
        noise_granted=observation.noise is not None,
        timesteps_granted=observation.timesteps is not None,
        timesteps=timesteps,
        problem=problem or "",
        unreadable=unreadable,
        repeated=repeated,
        adaptive_timesteps=adaptive_timesteps,
        adaptive_unreadable=adaptive_unreadable,
        convolutions=tuple(layer for layer in spectra if layer.name not in time_names),
        time_layers=tuple(layer for layer in spectra if layer.name in time_names),
        zeros=_zeros(observation.update),
        levels=_levels(observation.update),
        dropout=observation.dropout > 0,
        read=None if observation.is_gradient else _read(observation),
        noise_ratio=_noise_ratio(observation.update, spectra) if observation.is_gradient else None,
    )


def _timesteps(observation: Observation, adaptive: bool = False) -> tuple[tuple[int, ...] | None, str, tuple[int, ...]]:
    """Return the timesteps, granted or read; why they cannot be read; and the distinct ones, if that is because some repeat."""
    if observation.timesteps is not None:
        return tuple(sorted(observation.timesteps.tolist())), "", ()
    try:
        return tuple(read_timesteps(observation, adaptive).timesteps.tolist()), "", ()
    except RepeatedTimesteps as reason:
        return None, str(reason), tuple(reason.distinct.tolist())
    except UnreadableTimesteps as reason:
        return None, str(reason), ()


def _spectra(observation: Observation, marks: Landmarks) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer whose rank says something, with the singular values of its gradient, largest first."""
    time_layers = [(name, 1) for name in (marks.embedding, *marks.projections)]
    places = sites(observation.network, observation.image_shape)
    convolutions = [(site.name, site.height * site.width) for site in places if site.name in marks.encoder]
    for name, positions in (*convolutions, *time_layers):
        gradient = observation.update.get(f"{name}.weight")
        if gradient is not None and gradient.any():
            rows = gradient.flatten(1)
            sigma, patches = _singular_values(rows), observation.image_count * positions
            outputs, width = rows.shape
            floor = float(sigma[patches] / sigma[0]) if patches < len(sigma) else None
            complete = spans_patches(patches, outputs, width)
            yield Layer(name, positions, patches, outputs, width, complete, int(is_signal(sigma).sum()), floor), sigma


def _singular_values(rows: Tensor) -> Tensor:
    """Return the singular values of a matrix in float64 on the CPU, largest first."""
    rows = rows.cpu().double()
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().flip(0)


def _read(observation: Observation) -> float:
    """Return the share of the gradient's coordinates that are known, 0 if nothing can be read."""
    if why_unmatchable(observation) or not is_lossy(observation):
        return 0.0
    known = sum(int(measurements(observation, [name])[name].known.sum()) for name in observation.update)
    return known / sum(value.numel() for value in observation.update.values())


def _zeros(update: Update) -> float:
    count = sum(value.numel() for value in update.values())
    return sum(int((value == 0).sum()) for value in update.values()) / count if count else 0.0


def _levels(update: Update) -> int | None:
    """Return the number of distinct values in the largest tensor, None if they show no rounding."""
    largest = max(update.values(), key=Tensor.numel, default=torch.empty(0)).flatten()[:MAX_VALUES]
    nonzero = largest[largest != 0]
    count = int((nonzero.sort().values.diff() != 0).sum()) + 1
    return count if count < ROUNDED * len(nonzero) else None


def _noise_ratio(update: Update, spectra: Mapping[Layer, Tensor]) -> float | None:
    """Return the size of the noise relative to the rest of the update, by the singular values that no image explains.

    Noise of one size on every coordinate leaves (O - M) (n - M) degrees of freedom outside the M directions of the patches.
    """
    outside = freedom = 0.0
    for layer, sigma in spectra.items():
        if layer.floor is not None:
            outside += float(sigma[layer.patches :].square().sum())
            freedom += (layer.outputs - layer.patches) * (layer.width - layer.patches)
    if not freedom:
        return None
    coordinates = sum(value.numel() for value in update.values())
    noise = outside / freedom
    rest = sum(float(value.double().square().sum()) for value in update.values()) / coordinates - noise
    return math.sqrt(noise / rest) if rest > 0 else math.inf
