"""Solve for the residuals behind an update, at known noisy images. The method is ours.

At known noisy images x_t and timesteps, the update is linear in the residuals r = net(x_t, t) - target: it is A r with
A r = 2 / (N C H W) sum_i J_i^T r_i, where J_i is the derivative of the network's output for image i in the parameters. So r is
the solution of a least-squares problem, which conjugate gradients solve with first derivatives only. The distance is that of
`_kronecker`. One round costs one product with A and one with A^T.

The parameters nearest to the output are enough. They hold many times more numbers than the residuals, a product with their part
of A costs little, and fewer rounds are needed: little lies between them and the residuals. On `ddpm-cifar10` and a batch of
four, at the true noisy images, 24 rounds with the last residual block left smaller errors than 40 rounds with all parameters,
at a fifteenth of the cost of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import grad

from benchmark.attacks._kronecker import Metric
from benchmark.diffusion.denoiser import Denoiser

COORDINATES = 16
"""The number of coordinates of the update, for each unknown number, that the problem uses at least."""

INEXACT_COORDINATES = 1024
"""The same where coordinates have errors, which more of them average out."""

TOLERANCE = 1e-14
"""Share of the first slope's square at which the rounds end."""


def nearest_parameters(
    network: Denoiser, names: Sequence[str], x_t: Tensor, t: Tensor, coordinates: int = COORDINATES
) -> list[str]:
    """Return the parameters nearest to the output that hold enough coordinates, in the order in which modules run.

    Args:
        network: the granted network.
        names: the parameters that the update contains.
        x_t: (N, C, H, W) noisy images.
        t: (N,) timesteps.
        coordinates: how many coordinates for each unknown number are enough.
    """
    granted, order = set(names), dict[str, None]()

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(*_: object) -> None:
            order.pop(name, None)  # a module that runs again counts where it runs last
            order[name] = None

        return hook

    handles = [
        module.register_forward_hook(note(name)) for name, module in network.named_modules() if not list(module.children())
    ]
    try:
        with torch.no_grad():
            network(x_t[:1], t[:1])
    finally:
        for handle in handles:
            handle.remove()
    nearest = list[str]()
    for module in reversed(order):
        own = [f"{module}.{name}" for name, _ in network.get_submodule(module).named_parameters(recurse=False)]
        nearest = [name for name in own if name in granted] + nearest
        if sum(network.get_parameter(name).numel() for name in nearest) >= coordinates * x_t.numel():
            return nearest
    return list(names)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some images of the batch, with the graphs of their outputs and of their gradient.

    Attributes:
        output: (n, C, H, W) network outputs, with the graph that leads to the parameters.
        factor: (n, C, H, W) zeros. The graph of `gradient` is linear in them.
        gradient: the gradient of the scaled product of output and factor, in the order of the parameters.
    """

    output: Tensor
    factor: Tensor
    gradient: tuple[Tensor, ...]


class LinearUpdate:
    """The update of a batch as a linear function of its residuals. The graphs of both products are built once and kept.

    Attributes:
        output: (N, C, H, W) network outputs at the noisy images.
        pool: the threads.
    """

    def __init__(self, network: Denoiser, names: Sequence[str], x_t: Tensor, t: Tensor, workers: int = 1) -> None:
        """Build the graphs.

        Args:
            network: the granted network.
            names: the parameters that the update contains.
            x_t: (N, C, H, W) noisy images.
            t: (N,) timesteps.
            workers: threads, each with its share of the images.
        """
        self.parameters = [network.get_parameter(name) for name in names]
        self.scale = 2 / x_t.numel()
        self.pool = ThreadPoolExecutor(workers)
        self._sizes = [len(part) for part in torch.tensor_split(t, min(workers, len(t)))]
        parts = zip(torch.split(x_t, self._sizes), torch.split(t, self._sizes), strict=True)
        self._pieces = list(self.pool.map(lambda part: self._piece(network, *part), parts))
        self.output = torch.cat([piece.output.detach() for piece in self._pieces])

    def _piece(self, network: Denoiser, x_t: Tensor, t: Tensor) -> _Piece:
        output = network(x_t, t)
        factor = torch.zeros_like(output, requires_grad=True)
        return _Piece(output, factor, grad((self.scale * factor * output).sum(), self.parameters, create_graph=True))

    def times(self, residuals: Tensor) -> list[Tensor]:
        """Return A r for residuals (N, C, H, W): one tensor per parameter, in the given order."""

        def one(piece: _Piece, part: Tensor) -> tuple[Tensor, ...]:
            return grad(piece.output, self.parameters, self.scale * part, retain_graph=True)

        parts = list(self.pool.map(one, self._pieces, torch.split(residuals, self._sizes)))
        return [torch.stack(values).sum(0) for values in zip(*parts, strict=True)]

    def transposed_times(self, values: Sequence[Tensor]) -> Tensor:
        """Return A^T g (N, C, H, W) for one tensor per parameter."""

        def one(piece: _Piece) -> Tensor:
            (product,) = grad(piece.gradient, piece.factor, values, retain_graph=True)
            return product

        return torch.cat(list(self.pool.map(one, self._pieces)))

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()


def solve(
    linear: LinearUpdate, metric: Metric, observed: Sequence[Tensor], rounds: int, start: Tensor | None = None
) -> list[Tensor]:
    """Return the residuals (N, C, H, W) after each round of a least-squares search, the start first.

    The method is CGLS (Hestenes and Stiefel 1952). Slopes are made orthogonal to all earlier ones: in exact arithmetic they
    are, and in float32 this saves many rounds.

    Args:
        linear: the update as a function of the residuals.
        metric: the distance to the observed update.
        observed: the observed update, in the order of the linear update's parameters.
        rounds: the most rounds; there are fewer if the slope vanishes.
        start: the residuals to start from, None for zero.
    """
    path = [torch.zeros_like(linear.output) if start is None else start]
    missing = [a - b for a, b in zip(observed, linear.times(path[0]), strict=True)]
    slope = linear.transposed_times(metric.times(missing, linear.pool))
    direction, square = slope, _square(slope)
    first, earlier = square, list[Tensor]()
    while len(path) <= rounds and square > TOLERANCE * first:
        earlier.append(slope.flatten() / square**0.5)
        change = linear.times(direction)
        weighted = metric.times(change, linear.pool)
        step = square / float(sum((a * b).sum(dtype=torch.float64) for a, b in zip(change, weighted, strict=True)))
        path.append(path[-1] + step * direction)
        slope = _without(slope - step * linear.transposed_times(weighted), torch.stack(earlier))
        square, previous = _square(slope), square
        direction = slope + square / previous * direction
    return path


def _without(value: Tensor, directions: Tensor) -> Tensor:
    """Return a value without its parts along orthonormal directions (k, n). Once is not enough in float32."""
    flat = value.flatten()
    for _ in range(2):
        flat = flat - directions.T @ (directions @ flat)
    return flat.view_as(value)


def _square(value: Tensor) -> float:
    return float(value.square().sum(dtype=torch.float64))
