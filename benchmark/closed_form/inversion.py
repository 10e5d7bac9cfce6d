"""From activations that were read to the noisy images behind them. Ours.

The network's first layers are differentiable and their weights are known, so x_t is searched by what these layers make of it:
the angle to the activation that was read, and how far the patches of the convolutions before it reach out of their spans.
Nothing here depends on the loss, the noise or the residual, and one evaluation is a pass through the first layers and back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from benchmark.closed_form.activations import Activation, patch_span, read_activation
from benchmark.diffusion.denoiser import Denoiser
from benchmark.types import Observation


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution as the network passes it.

    Attributes:
        name: of the module.
        layer: the module.
        height: of its output.
        width: of its output.
    """

    name: str
    layer: nn.Conv2d
    height: int
    width: int

    @property
    def overlaps(self) -> bool:
        """Whether its patches overlap so that its input can be read, see `activations`."""
        return (self.layer.kernel_size, self.layer.stride, self.layer.padding) == ((3, 3), (1, 1), (1, 1))

    def patches(self, value: Tensor) -> Tensor:
        """(P, N, C K^2) of an input (P, C, H, W)."""
        layer = self.layer
        assert not isinstance(layer.padding, str)
        return F.unfold(value, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT


@dataclass(frozen=True, eq=False)
class Readout:
    """What was read from one update.

    Attributes:
        site: whose input was read.
        activation: that input.
        spans: the spans of the patches of convolutions before it, with their sites.
    """

    site: Site
    activation: Activation
    spans: Mapping[Site, Tensor]


def sites(network: Denoiser, image_shape: Sequence[int]) -> list[Site]:
    """The network's plain convolutions, in the order in which it passes them."""
    found: list[Site] = []
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]

    def note(name: str, layer: nn.Conv2d) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, inputs, output: found.append(Site(name, layer, output.shape[-2], output.shape[-1]))

    handles = [layer.register_forward_hook(note(name, layer)) for name, layer in layers]
    try:
        with torch.no_grad():
            network(
                torch.zeros(1, *image_shape, device=network.device), torch.zeros(1, dtype=torch.int64, device=network.device)
            )
    finally:
        for handle in handles:
            handle.remove()
    return found


def read(seen: Observation, passed: Sequence[Site]) -> Readout | None:
    """The first input that can be read on the network's way, and the spans before it; None where there is none.

    Of a batch, inputs are found mixed only, so one image is asked for.
    """
    if seen.batch_shape[0] > 1:
        return None
    spans: dict[Site, Tensor] = {}
    for site in passed:
        gradient = seen.update.get(f"{site.name}.weight")
        span = None if gradient is None else patch_span(gradient, site.height * site.width)
        if span is None:
            continue
        activation = read_activation(span, site.height, site.width) if site.overlaps else None
        if activation is not None:
            return Readout(site, activation, spans)
        spans[site] = span.float()
    return None


class Inversion:
    """The costs and gradients of noisy images of P victims with the same sites; an `Evaluate` of `search.Searches`."""

    def __init__(self, observations: Sequence[Observation], readouts: Sequence[Readout], span_weight: float) -> None:
        first = readouts[0]
        self.site, self.weight = first.site, span_weight
        self.shape = observations[0].image_shape
        self.activation = torch.stack([readout.activation.value.flatten() for readout in readouts])
        self.timesteps = torch.cat([seen.timesteps for seen in observations if seen.timesteps is not None])
        spans = [readout.spans.values() for readout in readouts] if span_weight else []
        self.spans = dict(zip(first.spans, map(torch.stack, zip(*spans, strict=True)), strict=bool(spans)))
        self.trunk = _trunk(observations[0].network, [site.name for site in (*self.spans, self.site)])

    def __call__(self, x: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `search.Evaluate`."""
        rows = list(rows)
        x = x.detach().requires_grad_()
        values = self.trunk(x.view(-1, *self.shape), self.timesteps[rows])
        cost = _outside(values[self.site.name].flatten(1).unsqueeze(1), self.activation[rows].unsqueeze(1))
        for site, span in self.spans.items():
            cost = cost + self.weight * _outside(site.patches(values[site.name]), span[rows])
        (gradient,) = grad(cost.sum(), x)
        return cost.detach(), gradient


def _outside(vectors: Tensor, span: Tensor) -> Tensor:
    """(P,): the share of the vectors' (P, N, n) squares outside the spans of orthonormal rows (P, M, n), in [0, 1]."""
    beyond = vectors - vectors @ span.mT @ span
    return beyond.square().sum((1, 2)) / vectors.square().sum((1, 2))


class _Reached(Exception):
    """The last site was reached."""


def _trunk(network: Denoiser, names: Sequence[str]) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
    """From noisy images (P, C, H, W) and timesteps (P,) to the inputs of the named layers; passes no layer after the last."""
    network, values = copy.deepcopy(network), dict[str, Tensor]()

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values[name] = inputs[0]
            if name == names[-1]:
                raise _Reached

        return hook

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(keep(name))

    def passed(x_t: Tensor, t: Tensor) -> Mapping[str, Tensor]:
        with suppress(_Reached):
            network(x_t, t)
        return values

    return passed
