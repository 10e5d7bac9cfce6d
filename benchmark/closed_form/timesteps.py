"""The client's timesteps, read from the gradient of the time embedding's first layer. Ours.

To test which of finitely many embeddings lie in the span of a gradient's rows is near to the abstract of DAGER (arXiv
2405.15586), for the tokens of a text.

The layer is a landmark of the network (`benchmark.diffusion.landmarks`). Its input is the embedding e(t_i), which no weight
changes where it is positional, as in every preset. Its gradients are sum_i d_i e(t_i)^T for the weight and sum_i d_i for the
bias, so the rows of [weight | bias] lie in the span of the vectors (e(t_i), 1): the timesteps are those of the T candidates
that lie in the span of the rows. The sum over examples, clients and local steps keeps that span.

Where that layer is withheld, the residual blocks' own projections of the time embedding tell as much: their input is a function
of the timestep and of weights that the server knows, so the same test runs on those T candidates, block by block until one is
read.

The span tells a set. Where fewer timesteps are found than there are images, some are repeated and it cannot say which, unless
there is one only. How far it is to be trusted follows from the gradient itself: N images span N dimensions at the most, and
what there is beyond them is noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.closed_form.activations import ROUNDING
from benchmark.diffusion.landmarks import Landmarks, landmarks
from benchmark.matching.problem import defect, flat
from benchmark.types import Observation, Reconstruction

ABOVE_NOISE = 5.0
"""Singular values count above this many times the noise."""

CLEAR = 10.0
"""The confidence from which on a reading is believed."""


class Unreadable(Exception):
    """The timesteps cannot be read; the message is one sentence that says why."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What the gradient tells.

    Attributes:
        timesteps: (N,) int64, ascending, one for each private image behind the update.
        confidence: how many times farther the nearest other timestep lies from the span than the farthest of these; at least
            `CLEAR`.
    """

    timesteps: Tensor
    confidence: float


def read_timesteps(seen: Observation) -> Reading:
    """The timesteps of the N private images behind an update, in no order.

    Raises:
        Unreadable: the update lacks the layer, the images are too many, the gradient is too noisy, or some
            timesteps are repeated.
    """
    if problem := defect(seen):
        raise Unreadable(problem)
    known = landmarks(seen.network)
    if known is None:
        raise Unreadable("the network does not say which layers take the time embedding")
    *others, last = _layers(seen, known)
    for layer in others:
        with suppress(Unreadable):
            return _read(seen, layer, known.inputs(layer))
    return _read(seen, last, known.inputs(last))


def _layers(seen: Observation, known: Landmarks) -> list[str]:
    """The layers that tell the timesteps: the first one, or where it is withheld those that take the embedding up."""
    told = [name for name in (known.embedding, *known.projections) if f"{name}.weight" in seen.update]
    if not told:
        raise Unreadable("no layer that takes the time embedding left the client")
    return told[:1] if told[0] == known.embedding else told


def _read(seen: Observation, layer: str, inputs: Tensor) -> Reading:
    """What one layer tells, whose input at each timestep is `inputs` (T, width)."""
    images, least = seen.batch_shape[0], seen.public.least_timestep or 0
    rows, candidates = seen.update[f"{layer}.weight"].double(), inputs[least:].double()
    width, bias = rows.shape[1], seen.update.get(f"{layer}.bias")
    if bias is not None:  # an input of 1 beside the others
        rows = torch.cat([rows, bias[:, None].double()], 1)
        candidates = torch.cat([candidates, torch.ones_like(candidates[:, :1])], 1)
    if images >= min(rows.shape):
        raise Unreadable(f"{images} timesteps are too many for a time embedding of width {width}")
    _, sigma, spanned = torch.linalg.svd(rows, full_matrices=False)
    noise = torch.maximum(sigma[images], ROUNDING * sigma[0])
    found = int((sigma[:images] > ABOVE_NOISE * noise).sum())
    candidates, span = torch.nn.functional.normalize(candidates, dim=1), spanned[:found]
    distances, order = (candidates - candidates @ span.T @ span).norm(dim=1).sort()
    confidence = float(distances[found] / distances[found - 1]) if found else 0.0
    if not confidence >= CLEAR:
        raise Unreadable(f"no {found or images} timesteps stand out from the gradient of '{layer}'")
    if 1 < found < images:
        raise Unreadable(f"{found} timesteps stand behind {images} images, and which are repeated is not told")
    return Reading((least + order[:found]).sort().values.expand(images).clone(), confidence)


def with_timesteps(
    observations: Sequence[Observation], attack: Callable[[Sequence[Observation]], Sequence[Reconstruction]]
) -> list[Reconstruction]:
    """What `attack` rebuilds where timesteps are granted or can be read; elsewhere nothing, and the reason why not.

    What is read is a set. Several timesteps of several local steps cannot be told apart by step, so the update is then taken as
    one batch, see `problem.step_by_step`.
    """
    told: dict[int, Observation] = {}
    refused: dict[int, Reconstruction] = {}
    for place, seen in enumerate(observations):
        if problem := defect(seen):
            refused[place] = Reconstruction(flat(seen), 0, diverged=problem)
            continue
        try:
            told[place] = seen if seen.timesteps is not None else _told(seen)
        except Unreadable as reason:
            refused[place] = Reconstruction(flat(seen), 0, diverged=f"the timestep is private and cannot be read: {reason}")
    rebuilt = dict(zip(told, attack(list(told.values())) if told else [], strict=True))
    read = {
        place: dataclasses.replace(found, timesteps=told[place].timesteps)
        for place, found in rebuilt.items()
        if observations[place].timesteps is None
    }
    found = {**refused, **rebuilt, **read}
    return [found[place] for place in range(len(observations))]


def _told(seen: Observation) -> Observation:
    timesteps = read_timesteps(seen).timesteps
    several = bool((timesteps != timesteps[0]).any())
    if several and seen.noise is not None:
        raise Unreadable("which of several timesteps belongs to which of the granted noises is not told")
    return dataclasses.replace(seen, timesteps=timesteps, order_known=seen.order_known and not several)
