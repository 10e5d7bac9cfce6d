"""A metric for updates in which the products of a network's Jacobian are well conditioned.

The weight gradient of a layer is G = D P, with the derivatives D (O, R) in the R output positions of all images and the patches
P (R, n) of the layer's input. In the metric <G, L^-1 G K^-1> with K = P^T P and L = D D^T, all directions of G count alike.
Without it, the few directions in which patches and derivatives vary most decide the distance. On a trained wide network a
least-squares search then needed many more rounds. On a tiny untrained network the plain distance needed fewer.

K is known exactly once the noisy images are known. L is estimated with random residuals. Martens and Grosse 2015 (arXiv
1503.05671) approximate the Fisher matrix of a layer by the same product (K-FAC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from benchmark.diffusion.denoiser import Denoiser

RIDGE = 1e-4
"""Added to the diagonal of K and L, as a share of its mean."""

RESIDUAL_DRAWS = 4
"""The number of random residuals that estimate L."""

WEIGHT_FLOOR = 1e-3
"""Added to the root mean square of other parameters, as a share of the largest one, before it is inverted."""

RANK_TOLERANCE = 1e-12
"""Share of the largest eigenvalue of P P^T above which a direction is no rounding error."""


@dataclass(frozen=True, eq=False)
class Factor:
    """The matrix K^-1 or L^-1 of one layer, as a full matrix or as the product of a narrow one and its transpose.

    Attributes:
        matrix: (n, n), or (n, rank) if `narrow`.
        narrow: whether the factor is `matrix @ matrix.T`.
    """

    matrix: Tensor
    narrow: bool = False

    def times(self, rows: Tensor) -> Tensor:
        """Return rows (m, n) times the factor."""
        return rows @ self.matrix @ self.matrix.T if self.narrow else rows @ self.matrix


@dataclass(frozen=True, eq=False)
class Metric:
    """The metric of an update, one part per parameter.

    Attributes:
        factors: the inverses of L and K of each parameter, None for a parameter that is no weight of a plain layer.
        scales: the scale of each parameter. With it, every parameter counts as much as it has coordinates.
    """

    factors: Sequence[tuple[Factor, Factor] | None]
    scales: Sequence[float]

    def times(self, values: Sequence[Tensor], pool: ThreadPoolExecutor) -> list[Tensor]:
        """Return the metric's matrix times an update."""
        parts = zip(self.factors, self.scales, values, strict=True)
        return list(pool.map(lambda part: part[1] * _times(part[0], part[2]) if part[1] else 0 * part[2], parts))


def metric(
    network: Denoiser, names: Sequence[str], x_t: Tensor, t: Tensor, observed: Sequence[Tensor], generator: torch.Generator
) -> Metric:
    """Return the metric at noisy images `x_t` (N, C, H, W) and timesteps `t` (N,).

    Args:
        network: the granted network.
        names: the parameters of the update.
        x_t: the noisy images.
        t: their timesteps.
        observed: the observed update, in the order of `names`.
        generator: draws the random residuals.
    """
    grams, outputs = dict[str, Factor](), dict[str, Tensor]()

    def note(name: str, layer: nn.Conv2d | nn.Linear) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            grams[name], outputs[name] = _inverse_gram(_rows(layer, inputs[0].detach())), output

        return hook

    handles = [
        layer.register_forward_hook(note(name, layer))
        for name, layer in network.named_modules()
        if f"{name}.weight" in names and _is_plain(layer)
    ]
    try:
        prediction = network(x_t, t)
    finally:
        for handle in handles:
            handle.remove()
    derivatives = _derivative_grams(prediction, outputs, generator)
    factors = []
    for name in names:
        layer = name.removesuffix(".weight")
        own = (Factor(_inverse(derivatives[layer])), grams[layer]) if layer in grams and name.endswith(".weight") else None
        factors.append(own)
    return Metric(factors, _scales(factors, observed))


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _rows(layer: nn.Conv2d | nn.Linear, value: Tensor) -> Tensor:
    """Return the patches (R, n) of a layer's input."""
    if isinstance(layer, nn.Linear):
        return value.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    return F.unfold(value, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.flatten(0, 1)


def _derivative_grams(prediction: Tensor, outputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Return L (O, O) of each layer, summed over random residuals."""
    sums = dict[str, Tensor]()
    for _ in range(RESIDUAL_DRAWS):
        residual = torch.randn(prediction.shape, generator=generator).to(prediction)
        for name, value in zip(outputs, grad(prediction, list(outputs.values()), residual, retain_graph=True), strict=True):
            rows = value.movedim(1, -1).flatten(0, -2) if value.dim() == 4 else value.flatten(0, -2)
            sums[name] = sums.get(name, 0) + rows.T @ rows
    return sums


def _inverse_gram(rows: Tensor) -> Factor:
    """Return the inverse of P^T P for patches P (R, n); narrow, and on the span of P alone, if there are few patches."""
    count, width = rows.shape
    if 4 * count > width:
        return Factor(_inverse(rows.T @ rows))
    rows = rows.double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values > RANK_TOLERANCE * values[-1]
    directions = rows.T @ vectors[:, kept] / values[kept].sqrt()
    return Factor((directions / (values[kept] + RIDGE * values.sum() / width).sqrt()).float(), narrow=True)


def _inverse(gram: Tensor) -> Tensor:
    matrix = gram.double()
    matrix.diagonal().add_(RIDGE * matrix.diagonal().mean())
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).float()


def _times(factors: tuple[Factor, Factor] | None, value: Tensor) -> Tensor:
    if factors is None:
        return value
    left, right = factors
    return left.times(right.times(value.flatten(1)).T).T.reshape(value.shape)


def _scales(factors: Sequence[tuple[Factor, Factor] | None], observed: Sequence[Tensor]) -> list[float]:
    sizes = [float(value.square().mean().sqrt()) for value in observed]
    floor = WEIGHT_FLOOR * max(sizes)
    return [
        (size + floor) ** -2 if own is None or not size else value.numel() / float((value * _times(own, value)).sum())
        for own, value, size in zip(factors, observed, sizes, strict=True)
    ]
