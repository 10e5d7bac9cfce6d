"""A squared distance between gradients that are whitened layer by layer. The method is ours.

A layer's gradient is a sum over the N places of its input: G = sum_p d_p a_p^T. Here a_p is the input patch at place p (with a
1 for the bias), and d_p is the derivative of the loss with respect to the layer's output at p. On large images the squared
distance can fall while the image gets worse; we observed this on one crop of 64x64 pixels. The idea behind whitening is not
tested by itself: many images share the large parts of the sum, and its small parts show which patch lies where.

If places were independent, and d independent of a, the covariance of the sum would be N E[d d^T] x E[a a^T]. This is one
Kronecker product for each layer, as in the abstract of Martens and Grosse 2015 (arXiv 1503.05671) for the Fisher information.
A guess of the images gives both factors. The difference of two gradients is whitened by them: E[d d^T]^-1/2 (G - G*)
E[a a^T]^-1/2. The norm of the result is a Mahalanobis distance. The share of each layer is divided by its own mean square at
the guess. How wrong these assumptions are has not been tested.

With several guesses, mean squares are averaged and covariances are pooled over all places. The guesses should be about as far
from the truth as the current image may be. With one guess of a single colour, the covariances reflect the diffusion noise
only. On large images neither choice was shown to be better.

At the truth the distance is zero, whatever the guesses are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from benchmark.diffusion.loss import training_loss
from benchmark.matching.defense_aware import as_released, as_trained, comparable
from benchmark.matching.objectives import Distance
from benchmark.matching.plans import plan_for
from benchmark.matching.problem import Updates, clean_guess, stack
from benchmark.types import Observation, Update


class NothingToCompare(Exception):
    """Raised if there is nothing to compare. The message is one sentence that gives the reason."""


NEGLIGIBLE_LAYER = 1e-30
"""Mean square up to which a layer is ignored: the defense pruned all of it, or every guess explains it."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The whitening factors of one layer. Its gradient is a matrix (O, I) with weight and bias side by side.

    Attributes:
        names: the names of weight and bias, if they left the client. For a normalisation they form one row, O = 1.
        is_row: whether they form one row.
        left: (O, O) E[d d^T]^-1/2, up to a factor.
        right: (I, I) E[a a^T]^-1/2, up to a factor.
    """

    names: tuple[str, ...]
    is_row: bool
    left: Tensor
    right: Tensor

    def whitened(self, difference: Update) -> Tensor:
        """Return the whitened differences (P, O, I) for differences (P, *shape) of updates."""
        parts = [
            difference[name].flatten(2) if difference[name].dim() > 2 else difference[name][..., None] for name in self.names
        ]
        matrix = torch.cat(parts, 1).mT if self.is_row else torch.cat(parts, 2)
        return self.left @ matrix @ self.right


def whitened_distance(observation: Observation, guesses: Tensor, damping: float) -> Distance:
    """Return the whitened distance for guesses x_0 (G, N, C, H, W), adapted to pruning and clipping. Its mean over them is 1.

    After one step of Adam, or where the message is rounded, differences count from the intervals that are left of the gradient.
    It compares only plain convolutions, linear layers and normalisations. It leaves out layers without places (in the time
    embedding, whose information other layers carry too), layers whose weight did not leave the client, and layers whose update
    is zero at all guesses.

    Args:
        observation: an observation with timesteps and noise.
        guesses: images at whose updates the covariances are computed.
        damping: what is added to a covariance before its root is taken, as a share of its largest eigenvalue.

    Raises:
        NothingToCompare: no layer is left to compare, all layers are ignored at these guesses, or a covariance has no
            decomposition.
    """
    factors = layer_factors(observation, guesses, damping)
    if not factors:
        raise NothingToCompare("no layer that can be whitened left the client")

    known, updates = stack([observation]), Updates(observation, plan_for(observation).backend)

    def mean_squares(update: Update, other: Update) -> Tensor:
        difference = {name: update[name] - value for name, value in other.items()}
        return torch.stack([layer.whitened(difference).square().mean((1, 2)) for layer in factors], 1)

    compare = as_trained(observation, mean_squares) or as_released(comparable(observation), mean_squares)

    def mean_squares_at(x_0: Tensor) -> Tensor:
        own = {name: value.detach() for name, value in updates(clean_guess({"x_0": x_0[None]}, known)).items()}
        return compare(own, known.update)[0]

    at_guesses = torch.stack([mean_squares_at(x_0) for x_0 in guesses]).mean(0)
    sizes = torch.tensor([float(len(layer.left) * len(layer.right)) for layer in factors], device=at_guesses.device)
    informative = at_guesses > NEGLIGIBLE_LAYER
    if not informative.any():
        raise NothingToCompare("no layer distinguishes these images from the observed update")
    weights = torch.where(informative, sizes / at_guesses, 0) / sizes[informative].sum()
    return lambda update, other: compare(update, other) @ weights


def layer_factors(observation: Observation, guesses: Tensor, damping: float) -> list[Factors]:
    """Return the factors of all layers, summed over the updates that the guesses would give. Each guess counts as one batch."""
    layers = {
        name: layer
        for name, layer in observation.network.named_modules()
        if f"{name}.weight" in observation.update and type(layer) in PLACES and _is_plain(layer)
    }
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for x_0 in guesses:
        for name, own in _moments(observation, x_0, layers):
            before = moments.get(name)
            moments[name] = own if before is None else (before[0] + own[0], before[1] + own[1])
    return [
        Factors(
            _sent_names(name, observation),
            isinstance(layers[name], nn.GroupNorm),
            inverse_root(left, damping),
            inverse_root(right, damping),
        )
        for name, (left, right) in moments.items()
    ]


def _moments(
    observation: Observation, x_0: Tensor, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Yield, for each active layer, its name and the sums of d d^T (O, O) and a a^T (I, I) over its places.

    For a layer with one row, O = 1.
    """
    assert observation.timesteps is not None and observation.noise is not None
    passed: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.dim() > 2:
                passed[name] = (inputs[0].detach(), output)

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        loss = training_loss(observation.network, observation.schedule, x_0, observation.timesteps, observation.noise)
    finally:
        for handle in handles:
            handle.remove()
    derivatives = grad(loss, [output for _, output in passed.values()], allow_unused=True) if passed else ()
    with torch.no_grad():
        for (name, (inputs, _)), derivative in zip(passed.items(), derivatives, strict=True):
            if derivative is None or not derivative.any():
                continue
            layer = layers[name]
            a, d = PLACES[type(layer)](layer, inputs, derivative)
            if not a.any():
                continue
            is_row = isinstance(layer, nn.GroupNorm)
            if len(_sent_names(name, observation)) == 2:
                a = torch.cat([a, d if is_row else torch.ones_like(a[:, :1])], 1)
            yield name, (gram(torch.ones_like(d[:, :1]) if is_row else d), gram(a))


def _sent_names(name: str, observation: Observation) -> tuple[str, ...]:
    return tuple(full for full in (f"{name}.weight", f"{name}.bias") if full in observation.update)


def gram(rows: Tensor) -> Tensor:
    """Return the sum (n, n) of v v^T over rows (N, n), in float64."""
    largest = rows.abs().amax()  # squares of small derivatives underflow in float32
    scaled = rows / largest
    return (scaled.mT @ scaled).double() * largest.double().square()


def _is_plain(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def inverse_root(moments: Tensor, damping: float) -> Tensor:
    """Return the inverse of the damped root (n, n) of a sum of v v^T, in float32.

    It is correct up to a factor only, since each layer is divided by its own size.
    """
    try:
        values, vectors = torch.linalg.eigh(moments / moments.diagonal().amax())
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # imported under another name
        raise NothingToCompare("a covariance could not be decomposed") from error
    roots = (values.clamp(min=0) + damping * values[-1]).rsqrt()
    root: Tensor = ((vectors * roots) @ vectors.mT).float()
    return root


def _of_convolution(layer: Any, inputs: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.mT.flatten(0, 1), derivative.flatten(2).mT.flatten(0, 1)


def _of_linear(layer: Any, inputs: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    return inputs.flatten(0, -2), derivative.flatten(0, -2)


def _of_normalisation(layer: Any, inputs: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    """Return n d and d at each place, with the normalised input n. The gradients are their sums over the places."""
    d = derivative.flatten(2)
    n = F.group_norm(inputs, layer.num_groups, eps=layer.eps).view_as(d)
    return (n * d).mT.flatten(0, 1), d.mT.flatten(0, 1)


PLACES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    nn.Conv2d: _of_convolution,
    nn.Linear: _of_linear,
    nn.GroupNorm: _of_normalisation,
}
"""For each kind of layer: a (N, I) and d (N, O) at its places, from its inputs and the derivative in its output."""
