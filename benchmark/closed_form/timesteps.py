"""Reads the client's timesteps from the gradient of the first layer of the time embedding. This method is ours.

The method tests which of finitely many embeddings lie in the row span of a gradient. The abstract of DAGER (arXiv 2405.15586)
describes a similar test for the tokens of a text.

The layer is a landmark of the network (`benchmark.diffusion.landmarks`). Its input is the embedding e(t_i). In every preset the
embedding is positional, so it does not depend on weights. The gradient of the layer is sum_i d_i e(t_i)^T for the weight and
sum_i d_i for the bias. So the rows of [weight | bias] lie in the span of the vectors (e(t_i), 1). The method tests all T
candidates: the private timesteps are the candidates whose vector lies in the span of the rows. A sum over examples, clients and
local steps keeps the span.

If the defense withholds this layer, the method uses the layers in the residual blocks that project the time embedding. Their
input is a function of the timestep and of weights that the server knows. So the same test works with their T inputs. The method
tries one block after the other until one of them gives the timesteps.

The span determines a set of timesteps. If the set has fewer timesteps than there are images, some timesteps are repeated. The
span does not determine which ones, unless the set has one element only. An attack that finds images one by one can try them
all. The gradient itself shows how reliable the result is:
N images span at most N dimensions, and everything beyond them is noise. Timesteps count as repeated only if the noise is so
small that it cannot hide an image.

Where a defense states that it prunes, rounds or adds noise, an adaptive attack also tries a fit of all these layers together to
the coordinates that are known (`benchmark.closed_form.candidates`). The result is accepted if it is far more likely than any
other set with one timestep replaced, and if errors of the stated size explain its misfit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.closed_form.activations import ROUNDING_NOISE
from benchmark.closed_form.candidates import EXACT_SHARE, Evidence, fit
from benchmark.closed_form.losses import Measurement, is_lossy, measurements
from benchmark.diffusion.landmarks import Landmarks, landmarks
from benchmark.matching.problem import mean_colour_start, why_unmatchable
from benchmark.types import Observation, Reconstruction

MIN_SIGNAL_TO_NOISE = 5.0
"""Smallest ratio to the noise at which a singular value counts as signal."""

MIN_CONFIDENCE = 10.0
"""Smallest confidence at which a reading is accepted."""

MAX_HIDDEN_SHARE = 1e-5
"""Largest noise, as a share of the largest singular value, that cannot hide an image with a timestep of its own.

With larger noise a timestep counted as repeated by mistake: 3 of 20 batches of two images, rounded to 8 bits (`tiny:trained`).
"""

MIN_LOG_RATIO = 25.0
"""Smallest difference of log-likelihoods at which a fit is accepted: wrong ones among 1,000 have odds of 1 in 10^8."""

MIN_FREEDOM = 10
"""Smallest number of known coordinates beyond those that any set of timesteps could explain."""


class UnreadableTimesteps(Exception):
    """Raised if the timesteps cannot be read; the message is one sentence that gives the reason."""


UNDECIDED = -1
"""Stands for a timestep that repeats one of the others of the update, it is unknown which."""


class RepeatedTimesteps(UnreadableTimesteps):
    """Raised if some timesteps are repeated, and which ones is unknown.

    Attributes:
        distinct: (D,) int64, ascending: each timestep that was read, once. D is at least 2.
    """

    def __init__(self, distinct: Tensor, images: int) -> None:
        self.distinct = distinct
        some = f"only {len(distinct)} timesteps stand out for {images} images"
        super().__init__(f"{some}: some are repeated, and which ones is unknown")


@dataclass(frozen=True, eq=False)
class Reading:
    """Timesteps that were read from a gradient.

    Attributes:
        timesteps: (N,) int64, ascending, one for each private image behind the update.
        confidence: a ratio of distances from the span, at least `MIN_CONFIDENCE`. It is the distance of the nearest timestep
            that was not chosen, over the distance of the farthest one that was chosen. For a fit to a lossy update it is
            `MIN_CONFIDENCE` times the difference of log-likelihoods over `MIN_LOG_RATIO`.
    """

    timesteps: Tensor
    confidence: float


def read_timesteps(observation: Observation, adaptive: bool = False) -> Reading:
    """Return the timesteps of the N private images behind an update, sorted: their true order stays unknown.

    Args:
        observation: the update.
        adaptive: whether to use the losses that the defense states (`losses.RESTORATION_PARAMETERS`).

    Raises:
        UnreadableTimesteps: the timesteps cannot be determined. The message gives the reason: an update that cannot be matched,
            missing layers or landmarks, too many images, too much noise, or repeated timesteps.
    """
    if problem := why_unmatchable(observation):
        raise UnreadableTimesteps(problem)
    marks = landmarks(observation.network)
    if marks is None:
        raise UnreadableTimesteps("the network does not say which layers take the time embedding")
    *others, last = _readable_layers(observation, marks)
    for layer in others:
        with suppress(UnreadableTimesteps):
            return _read_layer(observation, layer, marks.inputs(layer))
    try:
        return _read_layer(observation, last, marks.inputs(last))
    except UnreadableTimesteps:
        if not (adaptive and is_lossy(observation)):
            raise
    return _read_losses(observation, marks)


def _read_losses(observation: Observation, marks: Landmarks) -> Reading:
    """Return the timesteps that explain the known coordinates of all layers that take the time embedding.

    A smaller set than the number of images is accepted only if the known coordinates are exact: noise may hide an image.
    """
    if observation.public.draws_per_image:
        raise UnreadableTimesteps("several timesteps lie behind each image, and the update is lossy")
    images, least = observation.image_count, observation.public.least_timestep or 0
    takers = (marks.embedding, *marks.projections)
    measured = measurements(observation, [f"{layer}.{part}" for layer in takers for part in ("weight", "bias")])
    layers = [layer for layer in takers if f"{layer}.weight" in measured]
    if observation.local_steps > 1:  # only the input of the first layer does not depend on weights, which move
        layers = [layer for layer in layers if layer == marks.embedding]
    if not layers:
        raise UnreadableTimesteps("local steps changed the inputs of the layers that were sent, and the update is lossy")
    evidence = [_evidence(measured, layer, marks.inputs(layer)[least:].double()) for layer in layers]
    exact = not any(one.std for one in measured.values())
    for size in range(1 if exact else images, images + 1):
        found = fit(evidence, size)
        if found.plausible and found.freedom >= MIN_FREEDOM and found.log_ratio >= MIN_LOG_RATIO:
            timesteps = least + torch.tensor(found.chosen, device=observation.network.device).sort().values
            if 1 < size < images:
                raise RepeatedTimesteps(timesteps, images)
            return Reading(timesteps.expand(images).clone(), MIN_CONFIDENCE * found.log_ratio / MIN_LOG_RATIO)
    raise UnreadableTimesteps(f"no {images} timesteps stand out from what is known of the layers that take them")


def _evidence(measured: Mapping[str, Measurement], layer: str, candidates: Tensor) -> Evidence:
    """Return the known coordinates of a layer; the bias acts like the weight of one more input, which is always 1."""
    parts = [(measured[f"{layer}.weight"], candidates)]
    if bias := measured.get(f"{layer}.bias"):
        errors = None if bias.errors is None else bias.errors[:, None]
        column = Measurement(bias.values[:, None], bias.known[:, None], bias.std, bias.noise, errors)
        parts.append((column, torch.ones_like(candidates[:, :1])))
    return Evidence(
        torch.cat([part.values.double() for part, _ in parts], 1),
        torch.cat([_weights(part) for part, _ in parts], 1),
        torch.cat([inputs for _, inputs in parts], 1),
    )


def _weights(part: Measurement) -> Tensor:
    known = part.known.double()
    size = float((known * part.values.double()).square().sum() / known.sum().clamp(min=1)) ** 0.5
    std = part.errors if part.errors is not None else torch.full_like(known, part.std)
    variance = std.square() + (EXACT_SHARE * size) ** 2
    return torch.where(variance > 0, known / variance, 0)


def _readable_layers(observation: Observation, marks: Landmarks) -> list[str]:
    """Return the layers to read timesteps from: the first layer, or the projections in the blocks if it is withheld."""
    available = [name for name in (marks.embedding, *marks.projections) if f"{name}.weight" in observation.update]
    if not available:
        raise UnreadableTimesteps("no layer that takes the time embedding left the client")
    return available[:1] if available[0] == marks.embedding else available


def _read_layer(observation: Observation, layer: str, inputs: Tensor) -> Reading:
    """Return the timesteps read from the gradient of one layer, whose input at each timestep is `inputs` (T, width)."""
    images, least = observation.batch_shape[0], observation.public.least_timestep or 0
    rows, candidates = observation.update[f"{layer}.weight"].double(), inputs[least:].double()
    width, bias = rows.shape[1], observation.update.get(f"{layer}.bias")
    if bias is not None:  # the bias acts like the weight of one more input, which is always 1
        rows = torch.cat([rows, bias[:, None].double()], 1)
        candidates = torch.cat([candidates, torch.ones_like(candidates[:, :1])], 1)
    if images >= min(rows.shape):
        raise UnreadableTimesteps(f"{images} timesteps are too many for a time embedding of width {width}")
    _, sigma, basis = torch.linalg.svd(rows, full_matrices=False)
    noise = torch.maximum(sigma[images], ROUNDING_NOISE * sigma[0])
    rank = int((sigma[:images] > MIN_SIGNAL_TO_NOISE * noise).sum())
    if rank < images and noise > MAX_HIDDEN_SHARE * sigma[0]:
        raise UnreadableTimesteps(f"no {images} timesteps stand out from the noise in the gradient of '{layer}'")
    candidates, span = torch.nn.functional.normalize(candidates, dim=1), basis[:rank]
    distances, order = (candidates - candidates @ span.T @ span).norm(dim=1).sort()
    confidence = float(distances[rank] / distances[rank - 1]) if rank else 0.0
    if not confidence >= MIN_CONFIDENCE:
        raise UnreadableTimesteps(f"no {rank or images} timesteps stand out from the gradient of '{layer}'")
    timesteps = (least + order[:rank]).sort().values
    if 1 < rank < images:
        raise RepeatedTimesteps(timesteps, images)
    return Reading(timesteps.expand(images).clone(), confidence)


def with_timesteps(
    observations: Sequence[Observation],
    attack: Callable[[Sequence[Observation]], Sequence[Reconstruction]],
    adaptive: bool = False,
    decides: bool = False,
) -> list[Reconstruction]:
    """Run an attack that needs timesteps, and read the timesteps from the updates where they are not granted.

    A reading is a set, without an order. If it holds several timesteps, nothing assigns them to local steps. The attack then
    treats the update as the gradient of one batch, see `problem.unrolls_local_steps`.

    Args:
        observations: with or without granted timesteps.
        attack: called once, with the observations that have timesteps, granted or read; not called if there are none.
        adaptive: see `read_timesteps`. Such an attack names `losses.RESTORATION_PARAMETERS` in `adapts_to`.
        decides: whether the attack finds out which timesteps are repeated. It then also receives observations that end with
            `UNDECIDED` timesteps, and states all timesteps itself.

    Returns:
        One reconstruction for each observation. If the timesteps were read, it holds them, unless it states its own. Where the
        update cannot be matched or the timesteps cannot be read, it holds images of one colour and the reason in `diverged`.
    """
    attacked: dict[int, Observation] = {}
    refused: dict[int, Reconstruction] = {}
    for index, observation in enumerate(observations):
        if problem := why_unmatchable(observation):
            refused[index] = Reconstruction(mean_colour_start(observation), 0, diverged=problem)
            continue
        try:
            attacked[index] = (
                observation if observation.timesteps is not None else _with_read_timesteps(observation, adaptive, decides)
            )
        except UnreadableTimesteps as reason:
            refused[index] = Reconstruction(
                mean_colour_start(observation), 0, diverged=f"the timestep is private and cannot be read: {reason}"
            )
    rebuilt = dict(zip(attacked, attack(list(attacked.values())) if attacked else [], strict=True))
    with_reading = {
        index: dataclasses.replace(reconstruction, timesteps=attacked[index].timesteps)
        for index, reconstruction in rebuilt.items()
        if observations[index].timesteps is None and reconstruction.timesteps is None
    }
    results = {**refused, **rebuilt, **with_reading}
    return [results[index] for index in range(len(observations))]


def _with_read_timesteps(observation: Observation, adaptive: bool, decides: bool) -> Observation:
    try:
        timesteps = read_timesteps(observation, adaptive).timesteps
    except RepeatedTimesteps as repeated:
        if not decides:
            raise
        undecided = repeated.distinct.new_full((observation.image_count - len(repeated.distinct),), UNDECIDED)
        timesteps = torch.cat([repeated.distinct, undecided])
    several = bool((timesteps != timesteps[0]).any())
    if several and observation.noise is not None:
        raise UnreadableTimesteps("it is unknown which of the timesteps belongs to which of the granted noises")
    return dataclasses.replace(observation, timesteps=timesteps, order_known=observation.order_known and not several)
