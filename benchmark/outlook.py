"""What a diagnosis says about an update, and what an attack expects of it, before any search runs.

`benchmark.diagnosis` makes a `Diagnosis`. `Attack.outlook` turns it into an `Outlook`. The rules that several attacks share are
here. They never change an image, so this module is no part of a cell's identity (`benchmark.registry.identity`).

The constants come from theory and from the published tables, not from single cells. Where the budget or the start decides, the
expectation is "unknown".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

ROUNDING = 1e-6
"""Share of the largest singular value up to which the floor of the others is explained by rounding in float32."""

NOISE_GAIN = 6.0
"""Mean squared error on [0, 1] images of a search, over r^2 n / d: noise of r times the update, n unknowns, d coordinates.

`dlg` at 22.4 dB under `gaussian_noise[ratio=1]` in results/defenses gives this value.
"""

NOISE_MARGIN = 3.0
"""Distance in dB of the predicted PSNR from the threshold within which a rule about noise decides nothing."""

PRUNED = 0.85
"""Share of zeros from which on nothing is expected: in results/defenses no attack reached 30 dB at 90%, one did at 50%."""

FEW_EVALUATIONS = 1 / 15
"""Evaluations per unknown up to which no search with private noise is expected to succeed.

In results/defenses none did with 100 evaluations for 1,536 unknowns, and for several images in results/attacks/limits none did
with 300 for 12,288 and more.
"""

MAX_BATCH = 4
"""Number of images up to which a joint search is expected to succeed. In results/attacks/limits 8 images were too many."""


class Prediction(StrEnum):
    """What is expected of an attack: whether the median PSNR of the images reaches the success threshold."""

    RECOVERED = "recovered"
    NOT_RECOVERED = "not recovered"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Outlook:
    """What is expected of an attack, with the reason in one sentence."""

    prediction: Prediction
    reason: str


@dataclass(frozen=True)
class Layer:
    """What the weight gradient (O, n) of a layer can tell of its input.

    Attributes:
        name: the name of the module.
        positions: positions of its output for one image; 1 for a layer of the time embedding.
        patches: M, the number of images times the positions.
        outputs: O, the number of output channels.
        width: n, the number of entries of a patch.
        complete: whether the rows span all patches and not the whole space (`closed_form.sites.spans_patches`).
        rank: number of singular values above rounding.
        floor: the singular value M + 1 as a share of the largest. It is zero without rounding and noise. None if M is not
            below O and n.
    """

    name: str
    positions: int
    patches: int
    outputs: int
    width: int
    complete: bool
    rank: int
    floor: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What an update can reveal. Nothing here was searched.

    Attributes:
        images: N, the number of images behind the update, which is granted.
        pixels: numbers in one image.
        coordinates: numbers in the update.
        local_steps: local steps behind the update.
        order_known: whether granted values come in the order of clients and steps.
        noise_granted: whether the noise is granted.
        timesteps_granted: whether the timesteps are granted.
        timesteps: the timesteps, granted or read, ascending; None if they are neither.
        problem: why no search can use the update; empty if one can.
        unreadable: why the timesteps cannot be read; empty if they are known.
        repeated: the distinct timesteps if some are repeated and which ones is unknown, ascending; else empty.
        adaptive_timesteps: the timesteps for an attack that uses the losses that the defense states
            (`closed_form.timesteps.read_timesteps`); `timesteps` if these are known or no loss is stated.
        adaptive_unreadable: why such an attack cannot read them; empty if it knows them.
        convolutions: the plain convolutions of the encoder, in the order of the forward pass.
        time_layers: the layers that take the time embedding.
        zeros: share of the coordinates that are exactly zero.
        levels: number of distinct values in the largest tensor if it shows rounding, else None.
        dropout: whether the client's network dropped activations, which nobody else knows.
        read: share of the coordinates of the gradient that can be read through the client's optimiser and the rounding of its
            message; None if the update is the gradient itself, up to what a defense did.
        noise_ratio: root mean square of the noise, divided by that of the update without it, estimated from the singular values
            that no image explains; infinite if nothing else is left, None if every layer's rank can be full.
    """

    images: int
    pixels: int
    coordinates: int
    local_steps: int
    order_known: bool
    noise_granted: bool
    timesteps_granted: bool
    timesteps: tuple[int, ...] | None
    problem: str
    unreadable: str
    repeated: tuple[int, ...]
    adaptive_timesteps: tuple[int, ...] | None
    adaptive_unreadable: str
    convolutions: tuple[Layer, ...]
    time_layers: tuple[Layer, ...]
    zeros: float
    levels: int | None
    dropout: bool
    read: float | None
    noise_ratio: float | None

    @property
    def adapted(self) -> Diagnosis:
        """Return the diagnosis for an attack that uses the losses that the defense states when it reads the timesteps."""
        return replace(self, timesteps=self.adaptive_timesteps, unreadable=self.adaptive_unreadable)

    @property
    def complete(self) -> tuple[Layer, ...]:
        """Return the convolutions whose rows span the patches of all images."""
        return tuple(layer for layer in self.convolutions if layer.complete)

    def enough(self, published: int) -> int:
        """Return the evaluations that are enough for one image: the published number, or that of the unknowns if it is less.

        Conjugate directions solve a linear problem after as many steps as it has unknowns.
        """
        return min(published, self.unknowns // self.images)

    def too_few(self, evaluations: int) -> bool:
        """Return whether so few evaluations are not expected to find images and noise."""
        return evaluations <= FEW_EVALUATIONS * self.unknowns

    @property
    def unknowns(self) -> int:
        """Return the number of unknowns of a search: the images, and their noise if it is private."""
        return self.images * self.pixels * (1 if self.noise_granted else 2)

    @property
    def informative(self) -> tuple[Layer, ...]:
        """Return the convolutions whose patches do not fill the whole space, so that the rows restrict them."""
        return tuple(layer for layer in self.convolutions if layer.patches < layer.width)

    @property
    def estimated_images(self) -> int | None:
        """Return the least number of images that explains every rank below its largest possible value.

        None if there is no such rank, or if noise, pruning or rounding changed the ranks.
        """
        layers = [layer for layer in (*self.convolutions, *self.time_layers) if layer.rank < min(layer.outputs, layer.width)]
        needed = [math.ceil(layer.rank / layer.positions) for layer in layers]
        return None if self.disturbed else max(needed, default=None)

    @property
    def disturbed(self) -> bool:
        """Return whether the update is no gradient of this network, or its values show noise, pruning or rounding."""
        if self.dropout or self.read is not None:
            return True
        floors = [layer.floor for layer in (*self.convolutions, *self.time_layers) if layer.floor is not None]
        return self.levels is not None or self.zeros >= 0.5 or any(floor > ROUNDING for floor in floors)


def unknown(reason: str) -> Outlook:
    """Return the outlook that decides nothing."""
    return Outlook(Prediction.UNKNOWN, reason)


def refusal(diagnosis: Diagnosis) -> Outlook | None:
    """Return the outlook of an attack that needs the timesteps and cannot have them; None if it can."""
    if diagnosis.problem:
        return Outlook(Prediction.NOT_RECOVERED, diagnosis.problem)
    if diagnosis.timesteps is None:
        return Outlook(Prediction.NOT_RECOVERED, f"the timestep is private and cannot be read: {diagnosis.unreadable}")
    if not diagnosis.timesteps_granted and diagnosis.noise_granted and len(set(diagnosis.timesteps)) > 1:
        return Outlook(Prediction.NOT_RECOVERED, "it is unknown which timestep belongs to which of the granted noises")
    return None


def refusal_or_unknown(diagnosis: Diagnosis) -> Outlook:
    """Return the outlook of an attack of which only this is known: it refuses an update without timesteps."""
    return refusal(diagnosis) or unknown("budget and start decide")


def disturbance(diagnosis: Diagnosis, success_db: float) -> Outlook | None:
    """Return the outlook of a search where noise or pruning decides; None if they do not.

    The noise is compared with the error that it causes in a least-squares estimate of all unknowns. A rule that is near the
    threshold gives "unknown".
    """
    if diagnosis.dropout:
        return unknown("the client's network dropped activations, and nobody else knows which")
    if diagnosis.read is not None:
        return unknown(f"the update is no gradient: {diagnosis.read:.0%} of the gradient's coordinates can be read from it")
    if diagnosis.zeros >= PRUNED:
        return Outlook(Prediction.NOT_RECOVERED, f"{diagnosis.zeros:.0%} of the coordinates are zero")
    if not diagnosis.noise_ratio:
        return None
    error = NOISE_GAIN * diagnosis.noise_ratio**2 * diagnosis.unknowns / diagnosis.coordinates
    limit = max(0.0, -10 * math.log10(error))
    says = (
        f"the noise is {diagnosis.noise_ratio:.2g} times as large as the update, which limits a search to about {limit:.0f} dB"
    )
    if limit < success_db - NOISE_MARGIN:
        return Outlook(Prediction.NOT_RECOVERED, says)
    return unknown(says) if limit < success_db + NOISE_MARGIN else None


def of_search(diagnosis: Diagnosis, evaluations: int, enough: int, success_db: float) -> Outlook:
    """Return the outlook of a search by L-BFGS for images whose update is the observed one.

    Args:
        diagnosis: what the update can reveal.
        evaluations: the budget.
        enough: evaluations per image with which it has recovered images in the published tables; see `Diagnosis.enough`.
        success_db: the PSNR from which an image counts as recovered.
    """
    decided = refusal(diagnosis) or disturbance(diagnosis, success_db)
    return decided or _of_budget(diagnosis, evaluations, enough)


def _of_budget(diagnosis: Diagnosis, evaluations: int, enough: int) -> Outlook:
    """Return the outlook of a search that nothing but its budget decides."""
    if diagnosis.local_steps > 1 and not diagnosis.order_known:
        return unknown("the order of the local steps is unknown, and the search treats them as one batch")
    if diagnosis.images > MAX_BATCH:
        return unknown(f"{diagnosis.images} images are searched together, and published searches are of up to {MAX_BATCH}")
    if not diagnosis.noise_granted:
        if diagnosis.too_few(evaluations):
            return Outlook(Prediction.NOT_RECOVERED, f"{evaluations} evaluations are too few for private noise")
        return unknown("the noise is private, so budget and start decide")
    if evaluations < diagnosis.enough(enough) * diagnosis.images:
        return unknown(f"{evaluations} evaluations may be too few for {count(diagnosis.images)}")
    return Outlook(
        Prediction.RECOVERED,
        f"noise and timesteps are known, and {evaluations} evaluations are enough for {count(diagnosis.images)}",
    )


def of_adaptive_search(diagnosis: Diagnosis, evaluations: int, enough: int, success_db: float) -> Outlook:
    """Return the outlook of a search that uses the losses that the defense states; see `of_search` for the arguments."""
    diagnosis = diagnosis.adapted
    if refused := refusal(diagnosis):
        return refused
    by_budget = _of_budget(diagnosis, evaluations, enough)
    if by_budget.prediction is Prediction.NOT_RECOVERED:
        return by_budget
    return _stated_disturbance(diagnosis, success_db) or by_budget


def of_restored_search(diagnosis: Diagnosis, evaluations: int, enough: int, success_db: float) -> Outlook:
    """Return the outlook of a search that starts from layers of a disturbed update, which may be restored.

    No published table shows such searches. So a small budget for private noise decides nothing. The size of the noise still
    does: restoration adds no information to the update. The arguments are those of `of_search`.
    """
    if diagnosis.noise_granted:
        return of_adaptive_search(diagnosis, evaluations, enough, success_db)
    decided = refusal(diagnosis.adapted) or _stated_disturbance(diagnosis, success_db)
    return decided or unknown("the noise is private, and it is open which layers of the disturbed update can be restored")


def _stated_disturbance(diagnosis: Diagnosis, success_db: float) -> Outlook | None:
    """Return what `disturbance` says of a search that uses the stated losses: pruning and rounding exclude nothing then.

    Such a search leaves pruned coordinates out and knows the cells of rounded ones, so the rules of `disturbance` do not hold
    for them. Noise alone leaves neither zeros nor repeated values.
    """
    decided = disturbance(diagnosis, success_db)
    if decided and diagnosis.read is None and (diagnosis.zeros or diagnosis.levels is not None):
        return unknown(f"{decided.reason}, but the attack uses what the defense states")
    return decided


def combined(outlooks: Sequence[Outlook]) -> Outlook:
    """Return one outlook for several updates: that of more than half of them, else unknown."""
    votes = Counter(outlook.prediction for outlook in outlooks).most_common()
    prediction, most = votes[0]
    if 2 * most <= len(outlooks):
        return unknown("the updates differ: " + ", ".join(f"{number} {name}" for name, number in votes))
    return next(outlook for outlook in outlooks if outlook.prediction == prediction)


def count(images: int) -> str:
    """Return a number of images in words."""
    return "one image" if images == 1 else f"{images} images"
