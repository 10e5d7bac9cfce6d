"""Noisy images of a whole batch by the spans of wide layers, one at a time, then all residuals by linear algebra.

Source: ours

Related work, according to the abstracts: DAGER (arXiv 2405.15586) and TIGER (arXiv 2606.18312) use the span of a gradient's
rows to find text.

1. Private timesteps are read in closed form (`benchmark.closed_form.timesteps`). If that is refused, nothing is reconstructed.
   If some are repeated and which ones is unknown, step 3 tries them.
2. The attack uses the convolutions of the encoder whose gradient rows span the patches of all N images: N h w <= O for an
   output of O channels and h x w positions.
3. L-BFGS searches each noisy image alone, at its own timestep, from the mean colour of public images with noise. The cost is
   the share of its patches outside the spans (`benchmark.attacks._span_search`). A search may end at an image of another
   timestep. Its cost then stays high, and it is repeated from a new start. There it is first repelled from the images that have
   been found.
4. With all x_t and t known, the residuals solve a linear least-squares problem in the parameters nearest to the output
   (`benchmark.attacks._linear_residual`). Images and noise follow from them.
5. The attack predicts the PSNR of each image. It adds three mean squared errors: what the moves between thirds of step 4
   suggest is still to come, what the misfit of step 4 may have moved, and what the moves in step 3 suggest is still wrong in
   the noisy image. The second one is the change that the misfit makes if the signs of its coordinates are drawn at random (the
   wild bootstrap of Wu 1986). An image that was not found spoils the linear problem of its whole batch, so nothing is accepted
   then.

If the update is lossy, steps 2 and 3 use restored gradients only (`benchmark.closed_form.restoration`). It is lossy if the
defense states that it prunes, rounds or adds noise, if the client took one step of Adam, or if the message was rounded
(`benchmark.closed_form.losses`). Step 4 then uses the tensors that are known precisely. If these are too few, or the noise is
granted, the search of `residual` from the noisy images found replaces it. Nothing is accepted. Nothing is accepted either if
the client's network dropped activations.

If there is no such layer, or no image is found, the rest of the budget goes to the search of `residual`, which is adapted to
the defense.

If the noise is granted, step 4 is not needed: the images follow from the noisy ones. Images of one timestep may be found in any
order. Then the noise that leaves the smallest image belongs to each, because every other one would be added twice.

After several local steps, or with clients whose updates are summed, the N images are all images behind the update. After
several steps the weights drift, and both steps treat the update as one gradient, with an error of the order of the step size.

Shapes: images (N, C, H, W), unbounded. Cost: an evaluation of step 3 is one pass of all N images forward and back through the
encoder. One of step 4 is one pass back through the last layers and one derivative of it. Both use first derivatives only. Not
counted: a singular value decomposition of the gradient of each layer, and the restoration of lossy gradients, which may take
minutes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmark.attacks._batch_search import BatchSearch, Found, known_timesteps, remaining_error
from benchmark.attacks._kronecker import metric
from benchmark.attacks._linear_residual import COORDINATES, INEXACT_COORDINATES, LinearUpdate, nearest_parameters, solve
from benchmark.attacks._residual import ENOUGH_EVALUATIONS, default_start, search
from benchmark.attacks._span_search import SiteSpans, complete_spans
from benchmark.base.ranges import Count, InnerShare
from benchmark.closed_form.losses import RESTORATION_PARAMETERS, is_lossy, measurements
from benchmark.closed_form.restoration import PRECISE
from benchmark.closed_form.sites import sites_of_each
from benchmark.closed_form.timesteps import UNDECIDED, with_timesteps
from benchmark.matching.chunks import threads_for
from benchmark.matching.defense_aware import DISTANCE_PARAMETERS
from benchmark.matching.problem import mean_colour_start
from benchmark.outlook import (
    Diagnosis,
    Outlook,
    Prediction,
    count,
    of_adaptive_search,
    of_restored_search,
    refusal,
    unknown,
)
from benchmark.plugins import MatchingAttack
from benchmark.types import Observation, Reconstruction, Update

CHECKING_ROUNDS = 20
"""Rounds that tell how much of the misfit enters the residuals. On tuning images 40 rounds agreed to 0.5 dB."""

RESIDUAL_SCALE = 30.0
"""How far the residual moves before x_t does in the search from images that were found, as in `activations`."""


@dataclass(frozen=True, kw_only=True)
class Spans(MatchingAttack):
    """Hyper-parameters.

    Attributes:
        evaluations: budget for one victim, steps 3 and 4 together. An image is accepted after at least 90 in step 3.
        search_share: the largest share of the budget for step 3 if the noise is private. Step 4 has all that is left.
    """

    adapts_to: ClassVar[frozenset[str]] = DISTANCE_PARAMETERS | RESTORATION_PARAMETERS | {"least_timestep"}

    evaluations: Count = 800
    search_share: InnerShare = 0.75

    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """See `Attack.run`."""
        return with_timesteps(observations, lambda known: self._attack(known, generator), adaptive=True, decides=True)

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """See `Attack.outlook`."""
        tries_repeats = diagnosis.repeated and diagnosis.complete and not (diagnosis.noise_granted or diagnosis.disturbed)
        if not tries_repeats and (refused := refusal(diagnosis.adapted)):
            return refused
        if not diagnosis.complete:
            return of_adaptive_search(diagnosis, self.evaluations, ENOUGH_EVALUATIONS, success_db)
        if diagnosis.disturbed:
            return of_restored_search(diagnosis, self.evaluations - self._step_3_budget, ENOUGH_EVALUATIONS, success_db)
        if self.evaluations < diagnosis.enough(type(self).evaluations):
            return unknown(f"{len(diagnosis.complete)} layers are complete, but {self.evaluations} evaluations may be too few")
        found = f"{len(diagnosis.complete)} layers span all patches of {count(diagnosis.images)}"
        return Outlook(Prediction.RECOVERED, f"{found}, and nothing disturbs them")

    @property
    def _step_3_budget(self) -> int:
        """Return the evaluations for step 3 if the noise is private."""
        return max(1, round(self.search_share * self.evaluations))

    def _attack(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        spans = list(map(complete_spans, observations, sites_of_each(observations)))
        groups: dict[object, list[int]] = {}
        for place, observation in enumerate(observations):
            names = tuple(site.name for site in spans[place])
            lossy = is_lossy(observation)
            undecided, no_noise = _is_undecided(observation), observation.noise is None
            kind = (id(observation.network), observation.batch_shape, no_noise, lossy, undecided, names)
            groups.setdefault(kind, []).append(place)
        rebuilt: dict[int, Reconstruction] = {}
        for places in groups.values():
            some = [observations[place] for place in places]
            found = self._rebuild(some, [spans[place] for place in places], generator)
            rebuilt.update(zip(places, found, strict=True))
        for place, observation in enumerate(observations):
            if observation.dropout:  # no step predicts the error that unknown masks leave
                nothing = torch.zeros(observation.image_count)
                rebuilt[place] = dataclasses.replace(rebuilt[place], predicted_psnr=nothing)
        return [rebuilt[place] for place in range(len(observations))]

    def _rebuild(
        self, observations: Sequence[Observation], spans: Sequence[SiteSpans], generator: torch.Generator
    ) -> list[Reconstruction]:
        """Rebuild the images behind updates of one kind."""
        granted_noise, lossy = observations[0].noise is not None, is_lossy(observations[0])
        undecided = _is_undecided(observations[0])
        if undecided and (lossy or not spans[0]):
            return [_refused(observation, 0) for observation in observations]
        if not spans[0]:
            starts = [default_start(observation, generator) for observation in observations]
            note = "no wide layer could be restored" if lossy else "no layer is wide enough"
            return self._match(observations, starts, [0] * len(observations), note)
        budget = self.evaluations if granted_noise and not lossy else self._step_3_budget
        found = BatchSearch(observations, spans, budget).run(generator)
        rebuilt: dict[int, Reconstruction] = {}
        lost = [place for place, images in enumerate(found) if not images.any_found]
        if undecided:
            rebuilt.update((place, _refused(observations[place], found[place].spent)) for place in lost)
        elif lost:
            some, spent = [observations[place] for place in lost], [found[place].spent for place in lost]
            starts = [default_start(observation, generator) for observation in some]
            matched = self._match(some, starts, spent, "no noisy image was found")
            rebuilt.update(zip(lost, matched, strict=True))
        for place in sorted(set(range(len(found))) - set(lost)):
            observation, images = observations[place], found[place]
            precise = {} if granted_noise else _precise(observation, images)
            if lossy and (granted_noise or not precise):
                start = _denoised(observation, images).images if granted_noise else images.x
                (rebuilt[place],) = self._match([observation], [start], [images.spent], images.note, RESIDUAL_SCALE)
            elif granted_noise:
                rebuilt[place] = _denoised(observation, images)
            else:
                solved = _solved(observation, precise, images, self.evaluations - images.spent, generator)
                if undecided:
                    solved = dataclasses.replace(solved, timesteps=images.timesteps)
                if lossy:  # no step predicts the error that lossy spans leave in x_t
                    solved = dataclasses.replace(solved, predicted_psnr=torch.zeros(observation.image_count))
                rebuilt[place] = solved
        return [rebuilt[place] for place in range(len(found))]

    def _match(
        self, observations: Sequence[Observation], starts: Sequence[Tensor], spent: Sequence[int], note: str, scale: float = 1.0
    ) -> list[Reconstruction]:
        """Search all images together, as the attack `residual` does, with the rest of the budget. Nothing is accepted."""
        solutions = search(observations, starts, [self.evaluations - before for before in spent], scale)
        return [
            dataclasses.replace(
                solution.reconstruction(),
                evaluations=before + solution.evaluations,
                predicted_psnr=torch.zeros(observation.image_count),
                note=f"{note}: matched gradients",
            )
            for observation, solution, before in zip(observations, solutions, spent, strict=True)
        ]


def _is_undecided(observation: Observation) -> bool:
    """Return whether some timesteps are repeated and which ones is unknown."""
    return bool((known_timesteps(observation) == UNDECIDED).any())


def _refused(observation: Observation, spent: int) -> Reconstruction:
    """Return images of one colour, with the reason."""
    reason = "some timesteps are repeated, which ones is unknown, and no image of the batch could be found alone"
    return Reconstruction(mean_colour_start(observation), spent, diverged=reason)


def _denoised(observation: Observation, found: Found) -> Reconstruction:
    """Return the clean images that follow from the noisy images found and the granted noise.

    All images of one timestep have the prediction of the worst: if it was not found, its noise could be given to another.
    """
    t, noise, schedule = known_timesteps(observation), observation.noise, observation.schedule
    assert noise is not None
    signal, sigma = (scale[t].view(-1, 1, 1, 1) for scale in (schedule.signal, schedule.noise))
    images = (found.x[:, None] - sigma[:, None] * noise) / signal[:, None]  # (N, N, C, H, W): image i with noise j
    alike = t[:, None] == t
    size = torch.where(alike, images.square().flatten(2).mean(2), math.inf)
    x_0 = torch.empty_like(found.x)
    for together in {tuple(row.nonzero().flatten().tolist()) for row in alike}:
        places = list(together)
        owners, noises = linear_sum_assignment(size[places][:, places].cpu())
        for owner, own in zip(owners, noises, strict=True):
            x_0[places[own]] = images[places[owner], places[own]]
    worst = torch.where(alike, found.image_error(schedule.signal[t]), 0).max(1).values
    return Reconstruction(x_0, found.spent, float(found.loss.mean()), predicted_psnr=_decibels(worst), note=found.note)


def _precise(observation: Observation, found: Found) -> Update:
    """Return the tensors of the client's gradient that step 4 uses; none if too few are known precisely.

    They are nearest to the output. If the update is not the gradient itself, they are those that can be read from it.
    """
    measured, enough = measurements(observation), COORDINATES
    precise, update = list(observation.update), observation.update
    if measured:
        enough = INEXACT_COORDINATES
        precise = [name for name, measurement in measured.items() if measurement.precision < PRECISE]
        update = {name: measured[name].values for name in precise}
    if sum(value.numel() for value in update.values()) < COORDINATES * found.x.numel():
        return {}
    return {name: update[name] for name in nearest_parameters(observation.network, precise, found.x, found.timesteps, enough)}


def _solved(
    observation: Observation, gradient: Update, found: Found, rounds: int, generator: torch.Generator
) -> Reconstruction:
    """Return images and noise from the noisy images found, with the residuals of step 4 that explain a gradient."""
    t, network, names, observed = found.timesteps, observation.network, list(gradient), list(gradient.values())
    linear = LinearUpdate(network, names, found.x, t, threads_for(found.x.device))
    weights = metric(network, names, found.x, t, observed, generator)
    path = solve(linear, weights, observed, max(rounds - CHECKING_ROUNDS, rounds // 2))
    missing = [a - b for a, b in zip(observed, linear.times(path[-1]), strict=True)]
    signs = [2.0 * torch.randint(0, 2, value.shape, generator=generator).to(value) - 1 for value in missing]
    flipped = [a * b for a, b in zip(missing, signs, strict=True)]
    disturbed = solve(linear, weights, flipped, min(CHECKING_ROUNDS, rounds - rounds // 2))
    third, loss_weight = (len(path) - 1) // 3, observation.schedule.loss_weight(t).view(-1, 1, 1, 1)
    (x_0, eps), (before, _), (first, _), (other, _) = (
        observation.schedule.denoised(found.x, t, linear.output - residuals / loss_weight)
        for residuals in (path[-1], path[-1 - third], path[-1 - 2 * third], path[-1] + disturbed[-1])
    )
    linear.close()
    first, before, last, other = (images.clamp(-1, 1) / 2 for images in (first, before, x_0, other))
    error = remaining_error(first, before, last) + (last - other).square().flatten(1).mean(1)
    error = error + found.image_error(observation.schedule.signal[t])
    if not (found.all_converged and rounds > 2 * CHECKING_ROUNDS):
        error = torch.ones_like(error)
    return Reconstruction(
        x_0,
        found.spent + len(path) + len(disturbed) - 2,
        float(sum(value.square().sum() for value in missing)),
        noise=eps,
        predicted_psnr=_decibels(error),
        note=found.note,
    )


def _decibels(error: Tensor) -> Tensor:
    """Return the PSNR of mean squared errors (N,) on [0, 1] images, from 0 to 100 dB."""
    return -10 * error.clamp(1e-10, 1).log10()
