"""Search for one noisy image at a time by the spans of an update. The method is ours.

The weight gradient of a layer is a product G = D P. The rows of P are the patches of the layer's input, for every position of
every image of the batch. If a batch of N images has no more patches than the layer has output channels, the rows of G span all
these patches. An image that lies behind the update then has all its patches inside this span, and so one image can be searched
alone, at its own timestep. The cost is the share of the patches' square that lies outside the span, averaged over the layers.
An evaluation is one pass of one image forward and back through the encoder.

`_inversion` asks the opposite question: which share of the span the patches of all images explain together.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

from benchmark.attacks._inversion import layer_inputs, legible
from benchmark.base.machine import free_memory
from benchmark.closed_form.activations import row_span
from benchmark.closed_form.sites import Site, spans_patches
from benchmark.diffusion.landmarks import landmarks
from benchmark.matching.chunks import Chunked
from benchmark.matching.resources import Peak
from benchmark.types import Observation

SiteSpans = Mapping[Site, Tensor]
"""Orthonormal bases (R, C K^2) float32 of row spans, by site."""

REPULSION = 0.1
"""Weight of the share of an image's patches that lies inside the spans of images already found."""

MAX_ERROR = 1e-3
"""Largest squared error of a restored gradient, as a share of its square: about the share of the truth outside its spans."""

MEMORY_SHARE = 0.6
"""Share of the free memory that the chunks may need, as measured on one search."""


def complete_spans(observation: Observation, network_sites: Sequence[Site]) -> SiteSpans:
    """Return the row spans of the gradients of all encoder convolutions whose rows span the patches of all images.

    `network_sites` are the network's plain convolutions, the same for all updates that are searched together.

    These are the layers with N h w <= O and N h w < C K^2, for N images and an output of O channels and h x w positions. Where
    rounding hides directions of a span, patches of the images lie outside it: such layers are left out if there are others.
    Lossy gradients are restored first, and left out if that fails. The result is empty if there is no such layer, or if the
    network states no landmarks.
    """
    marks = landmarks(observation.network)
    if marks is None:
        return {}
    observation = legible(observation, network_sites, MAX_ERROR)
    spans = {
        site: _basis(gradient)
        for site, gradient in _gradients(observation, network_sites, marks.encoder)
        if _is_complete(observation.image_count, site, gradient) and gradient.any()
    }
    return {site: span for site, span in spans.items() if len(span) == _patches(observation.image_count, site)} or spans


def _gradients(observation: Observation, network_sites: Sequence[Site], encoder: frozenset[str]) -> list[tuple[Site, Tensor]]:
    named = [(site, observation.update.get(f"{site.name}.weight")) for site in network_sites if site.name in encoder]
    return [(site, gradient) for site, gradient in named if gradient is not None]


def _is_complete(images: int, site: Site, gradient: Tensor) -> bool:
    return spans_patches(_patches(images, site), *gradient.flatten(1).shape)


def _patches(images: int, site: Site) -> int:
    return images * site.height * site.width


@dataclass(frozen=True, eq=False)
class Sought:
    """One image that is searched.

    Attributes:
        update: the number of the update that it lies behind.
        timestep: its timestep.
    """

    update: int
    timestep: int


class SpanSearch(Chunked):
    """The costs and gradients of images behind P updates of one network; an `Evaluate` of `search.Searches`.

    The search variables are noisy images.

    Attributes:
        sites: the layers that are compared.
    """

    def __init__(
        self,
        observation: Observation,
        spans: Sequence[SiteSpans],
        sought: Sequence[Sought],
        repellers: Sequence[SiteSpans] | None = None,
    ) -> None:
        """Prepare the searches.

        Args:
            observation: one of the updates; all have its network, process and image shape.
            spans: the spans of each update, all of the same sites.
            sought: the images, in the order of their updates.
            repellers: for each update the spans of patches that its images must avoid, by some of the sites.
        """
        self.observation, self.spans, self.sought, self.repellers = observation, spans, sought, repellers
        self.sites = list(spans[0])
        self._local = threading.local()
        device = torch.device(observation.network.device)
        super().__init__(device, len(sought), len(sought))
        with Peak() as memory:
            self._chunk(torch.zeros(1, *observation.image_shape, device=device).flatten(1), (0,))
        super().__init__(device, len(sought), max(1, int(MEMORY_SHARE * free_memory(device) / memory.peak)))

    def _chunk(self, x: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        patches = self._patches(x, rows)
        parts = []
        for update, group in itertools.groupby(range(len(rows)), lambda place: self.sought[rows[place]].update):
            places = list(group)
            inside = slice(places[0], places[-1] + 1)
            cost = torch.stack([_share_outside(patches[site][inside], self.spans[update][site]) for site in self.sites]).mean(0)
            if self.repellers and self.repellers[update]:
                shares = [1 - _share_outside(patches[site][inside], span) for site, span in self.repellers[update].items()]
                cost = cost + REPULSION * torch.stack(shares).mean(0)
            parts.append(cost)
        costs = torch.cat(parts)
        (gradient,) = grad(costs.sum(), x)
        return costs.detach(), gradient

    def _patches(self, x: Tensor, rows: Sequence[int]) -> Mapping[Site, Tensor]:
        images, t = x.view(-1, *self.observation.image_shape), [self.sought[row].timestep for row in rows]
        values = self._layer_inputs(images, torch.tensor(t, device=x.device))
        return {site: site.patches(values[site.name]) for site in self.sites}

    @torch.no_grad()
    def patch_spans(self, x: Tensor, rows: Sequence[int], last: int) -> SiteSpans:
        """Return bases of the span of all patches of the images `rows` at `x` (A, n), at the last sites."""
        patches = self._patches(x, rows)
        return {site: _basis(patches[site].flatten(0, 1)) for site in self.sites[-last:]}

    @property
    def _layer_inputs(self) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
        # Hooks store the inputs, so each thread needs its own copy of the network.
        if not hasattr(self._local, "run"):
            self._local.run = layer_inputs(self.observation.network, [site.name for site in self.sites])
        run: Callable[[Tensor, Tensor], Mapping[str, Tensor]] = self._local.run
        return run


def _share_outside(patches: Tensor, span: Tensor) -> Tensor:
    """Return the share (A,) of the square of patches (A, N, n) outside a span (R, n) with orthonormal rows."""
    outside = patches - patches @ span.T @ span
    return outside.square().sum((1, 2)) / patches.square().sum((1, 2))


def _basis(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (R, n) float32 of the span of rows (N, ...), without directions that rounding explains.

    The singular value decomposition, in float64, runs on the CPU. It was never timed on a GPU.
    """
    return row_span(rows.cpu()).float().to(rows.device)
