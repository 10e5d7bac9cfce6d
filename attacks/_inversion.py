"""Search for noisy images that explain activations and gradient rows read from an update. The method is ours.

The network's layers are differentiable, and the attacker knows their weights. So the search computes the inputs of the
encoder's layers for the guessed images and compares them with what was read from the update. The cost has two parts: the angle
to the activation that was read, and the share of the rows of the weight gradients that lies outside the span of the patches.
The second part is the least squares distance of each gradient G to D P over all matrices D, where P holds the patches. D holds
the derivatives that flow back. The fit eliminates it layer by layer (variable projection), so neither the residual nor the
loss is needed. One evaluation is a pass forward and back through the encoder, with first derivatives only. TIGER (arXiv
2606.18312, according to its abstract) uses a distance to such a span for the embeddings of text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import grad

from benchmark.closed_form.activations import Activation, patch_span, read_activation, row_span
from benchmark.closed_form.restoration import restored
from benchmark.closed_form.sites import Site
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.landmarks import landmarks
from benchmark.matching.problem import why_unmatchable
from benchmark.types import Observation

RIDGE = 1e-9
"""Added to a Gram matrix's diagonal, as a share of its mean. Patches may be linearly dependent, as in a flat image."""


@dataclass(frozen=True, eq=False)
class Readout:
    """The result of reading one update.

    Attributes:
        spans: bases (R, C K^2) of the row spans of the weight gradients, by site.
        activation: the input of the first convolution whose input can be read; None if there is none.
        site: that convolution; None if there is none.
    """

    spans: Mapping[Site, Tensor]
    activation: Activation | None = None
    site: Site | None = None

    @property
    def kind(self) -> object:
        """Return what readouts must have in common to be searched together."""
        return (self.site, *((site, len(span)) for site, span in self.spans.items()))


def legible(observation: Observation, network_sites: Sequence[Site], max_error: float) -> Observation:
    """Return an observation of which only exact and restored gradients are left (`benchmark.closed_form.restoration`).

    If the defense states no loss, it is the observation itself. Else it holds the encoder's convolutions that were restored.
    The squared error of each is at most `max_error` times its square.
    """
    known = landmarks(observation.network)
    if known is None or why_unmatchable(observation):
        return observation
    return restored(observation, [site for site in network_sites if site.name in known.encoder], max_error).legible


def read_update(observation: Observation, network_sites: Sequence[Site]) -> Readout:
    """Read the spans of the encoder's weight gradients and, if one image lies behind the update, an activation too.

    With one image, the spans of layers after the activation are left out: they follow from it, and they made the search
    slower. The readout is empty if the network states no landmarks or the update cannot be matched (`why_unmatchable`).
    """
    known = landmarks(observation.network)
    if known is None or why_unmatchable(observation):
        return Readout({})
    images = observation.batch_shape[0]
    received = [site for site in network_sites if f"{site.name}.weight" in observation.update and site.name in known.encoder]
    gradients = {site: observation.update[f"{site.name}.weight"] for site in received}
    informative = {site: g for site, g in gradients.items() if g.any() and images * site.height * site.width < g[0].numel()}
    spans = {site: row_span(gradient) for site, gradient in informative.items()}
    for site, gradient in informative.items() if images == 1 else ():
        span = patch_span(gradient, site.height * site.width) if site.overlaps else None
        activation = None if span is None else read_activation(span, site.height, site.width)
        if activation is not None:
            before = list(spans)[: list(spans).index(site) + 1]
            return Readout({place: spans[place] for place in before}, activation, site)
    return Readout(spans)


class Inversion:
    """The costs and gradients for P victims whose readouts are of one kind; an `Evaluate` of `search.Searches`.

    The search variables are clean images if the noise is granted, else noisy images. The cost is the angle to the activation
    that was read, plus `span_weight` times the mean over sites of the share of the span outside the span of the guessed
    patches. Both parts are squared sines: 0 at the truth and at most 1.
    """

    def __init__(self, observations: Sequence[Observation], readouts: Sequence[Readout], span_weight: float) -> None:
        first, self.observation = readouts[0], observations[0]
        self.site, self.weight = first.site, span_weight
        activations = [readout.activation.value for readout in readouts if readout.activation]
        self.activation = torch.stack(activations).flatten(1) if activations else None
        self.spans = {site: torch.stack([readout.spans[site] for readout in readouts]) for site in first.spans if span_weight}
        self.timesteps = torch.stack(
            [observation.timesteps for observation in observations if observation.timesteps is not None]
        )
        noise = [observation.noise for observation in observations if observation.noise is not None]
        self.noise = torch.stack(noise) if noise else None
        needed = {*self.spans, *([self.site] if self.site else [])}
        self.layer_inputs = layer_inputs(self.observation.network, [site.name for site in first.spans if site in needed])

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `search.Evaluate`."""
        rows = list(rows)
        x = x.detach().requires_grad_()
        values = self.layer_inputs(*self._noisy(x.view(-1, *self.observation.image_shape), rows))
        cost = torch.zeros(len(rows), device=x.device)
        if self.activation is not None and self.site is not None:
            cost = cost + _squared_sine(values[self.site.name].flatten(1), self.activation[rows])
        for site, span in self.spans.items():
            patches = site.patches(values[site.name])
            patches = patches.reshape(len(rows), -1, patches.shape[-1])
            cost = cost + self.weight / len(self.spans) * _share_outside(span[rows], patches)
        (gradient,) = grad(cost.sum(), x)
        return cost.detach(), gradient

    def _noisy(self, x: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        t = self.timesteps[rows].flatten()
        return (x if self.noise is None else self.observation.schedule.add_noise(x, t, self.noise[rows].flatten(0, 1))), t


def _squared_sine(values: Tensor, direction: Tensor) -> Tensor:
    """Return the squared sines (P,) of the angles between vectors (P, n) and unit vectors (P, n)."""
    beyond = values - (values * direction).sum(1, keepdim=True) * direction
    return beyond.square().sum(1) / values.square().sum(1)


def _share_outside(span: Tensor, patches: Tensor) -> Tensor:
    """Return the share (P,) of spans (P, R, n) with orthonormal rows that lies outside the spans of patches (P, N, n).

    It is computed in float64. It is NaN if the patches are NaN, zero or out of range.
    """
    patches = patches.double()
    gram = patches @ patches.mT
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
    triangle, lost = torch.linalg.cholesky_ex(gram + ridge[:, None, None] * torch.eye(len(gram[0]), device=gram.device))
    inside: Tensor = torch.linalg.solve_triangular(triangle, patches @ span.mT, upper=False)
    return torch.where(lost > 0, math.nan, 1 - inside.square().sum((1, 2)) / span.shape[1]).float()


class _LastSiteReached(Exception):
    """Raised by a hook when the last site is reached, to stop the forward pass."""


def layer_inputs(network: Denoiser, names: Sequence[str]) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
    """Return a function from noisy images (P, C, H, W) and timesteps (P,) to the inputs of the named layers.

    It computes no layer after the last named one.
    """
    network, values = copy.deepcopy(network).requires_grad_(False), dict[str, Tensor]()

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values[name] = inputs[0]
            if name == names[-1]:
                raise _LastSiteReached

        return hook

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(keep(name))

    def run(x_t: Tensor, t: Tensor) -> Mapping[str, Tensor]:
        values.clear()
        with suppress(_LastSiteReached):
            network(x_t, t)
        return values

    return run
