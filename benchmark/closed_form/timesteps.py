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
span does not determine which ones, unless the set has one element only. The gradient itself shows how reliable the result is:
N images span at most N dimensions, and everything beyond them is noise.
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
"""Smallest ratio to the noise at which a singular value counts as signal."""

CLEAR = 10.0
"""Smallest confidence at which a reading is accepted."""


class Unreadable(Exception):
    """Raised if the timesteps cannot be read; the message is one sentence that gives the reason."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Timesteps that were read from a gradient.

    Attributes:
        timesteps: (N,) int64, ascending, one for each private image behind the update.
        confidence: a ratio of distances from the span, at least `CLEAR`: the distance of the nearest timestep that was not
            chosen, over the distance of the farthest one that was chosen.
    """

    timesteps: Tensor
    confidence: float


def read_timesteps(seen: Observation) -> Reading:
    """Return the timesteps of the N private images behind an update, sorted: their true order stays unknown.

    Raises:
        Unreadable: the update cannot be matched, it lacks the layers, the network states no landmarks, there are too many
            images, the gradient is too noisy, or some timesteps are repeated.
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
    """Return the layers to read timesteps from: the first layer, or the projections in the blocks if it is withheld."""
    told = [name for name in (known.embedding, *known.projections) if f"{name}.weight" in seen.update]
    if not told:
        raise Unreadable("no layer that takes the time embedding left the client")
    return told[:1] if told[0] == known.embedding else told


def _read(seen: Observation, layer: str, inputs: Tensor) -> Reading:
    """Return the timesteps read from the gradient of one layer, whose input at each timestep is `inputs` (T, width)."""
    images, least = seen.batch_shape[0], seen.public.least_timestep or 0
    rows, candidates = seen.update[f"{layer}.weight"].double(), inputs[least:].double()
    width, bias = rows.shape[1], seen.update.get(f"{layer}.bias")
    if bias is not None:  # the bias acts like the weight of one more input, which is always 1
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
    """Run an attack that needs timesteps, and read the timesteps from the updates where they are not granted.

    A reading is a set, without an order. If it holds several timesteps, nothing assigns them to local steps. The attack then
    treats the update as the gradient of one batch, see `problem.step_by_step`.

    Args:
        observations: with or without granted timesteps.
        attack: called once, with the observations that have timesteps, granted or read; not called if there are none.

    Returns:
        One reconstruction for each observation. If the timesteps were read, it holds them. Where the update cannot be matched
        or the timesteps cannot be read, it holds images of one colour and the reason in `diverged`.
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
