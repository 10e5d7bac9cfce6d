"""Compares a guess with the intervals that one step of Adam, or rounding, leaves of what the client computed. Ours.

Every coordinate of the client's gradient lies in a known interval (`first_step`). A guess inside all of them explains the
update, however it is compared. So each coordinate is compared with the point of its interval that is nearest to the guess.
Where the interval is narrow, the coordinate is read, and this is the usual difference. Where only a sign and a lower bound are
left, the difference is what the guess lacks to the bound. A comparison through Adam's step itself would tell the search
nothing there: the step hardly depends on the gradient.

Trials of `tiny` at 16x16, t = 200, one step of Adam (lr 1e-4, eps 1e-8), noise granted, 100 evaluations: on two photographs
with random weights, where 8% of the coordinates could be read up to 5%, this distance reached 73 and 78 dB. With each tensor
divided by its size it reached 57 and 56 dB. On the one photograph with trained weights both stood at 9 dB, below the cosine
distance that takes the update for a gradient (14 dB). There 100 evaluations were too few for plain SGD, too (10 dB).
"""

from __future__ import annotations

from torch import Tensor

from benchmark.disclosure import Release
from benchmark.matching.first_step import gradient_interval, update_interval, why_unreadable
from benchmark.matching.objectives import Distance
from benchmark.matching.problem import unrolls_local_steps, why_unmatchable
from benchmark.types import Observation, Update

Bounds = tuple[Update, Update]
"""Lower and upper bounds of the update of one guess, (1, *shape) each, by parameter. They may be infinite."""


def bounds(observation: Observation) -> Bounds | None:
    """Return bounds of what the engine computes from the true images. Return None if the update is exact or nothing is known.

    The engine computes the gradient of a single step, which the optimiser and the rounding of the message bound. For several
    steps in known order it computes their update (`unrolls_local_steps`), which the rounding alone bounds. A defense that
    prunes or limits coordinates leaves bounds of a single step. Where it clips the update, adds noise or rounds, nothing is
    known.
    """
    public, unrolled = observation.public, unrolls_local_steps(observation)
    allowed = {Release.CLIP} if unrolled else {Release.CLIP, Release.LIMIT, Release.PRUNE}
    changed = public.update_clip_norm is not None or not public.releases <= allowed
    unknown = not unrolled and why_unreadable(observation) is not None
    exact = observation.is_gradient or (unrolled and observation.message.is_exact)
    if exact or changed or unknown or why_unmatchable(observation):
        return None
    interval = update_interval if unrolled else gradient_interval
    found = {name: interval(observation, name) for name in observation.update}
    low = {name: one.low[None].to(observation.update[name]) for name, one in found.items()}
    return low, {name: one.high[None].to(observation.update[name]) for name, one in found.items()}


def within(compare: Distance, known: Bounds) -> Distance:
    """Return the comparison of one guess with the nearest points of its intervals, in place of the observed update.

    Coordinates without any bound are zero in both.
    """
    low, high = known
    bounded = {name: ~(low[name].isinf() & high[name].isinf()) for name in low}

    def to_nearest(update: Update, observed: Update) -> Tensor:
        own = {name: update[name] * bounded[name] for name in observed}
        return compare(own, {name: value.detach().clamp(low[name], high[name]) for name, value in own.items()})

    return to_nearest
