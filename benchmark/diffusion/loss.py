"""The training loss and its gradient. Client and attacker use the same functions, so their scales agree."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd import grad

from benchmark.diffusion.process import Mixture, Process

Forward = Callable[[Tensor, Tensor | Mixture], Tensor]
"""A network as a function of noisy images (B, C, H, W) and B timesteps, as `Denoiser.forward` is."""


def losses(network: Forward, schedule: Process, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
    """Return the loss (B,) of each example: the weighted mean of (net(x_t, t) - target)^2 over channels and pixels.

    The weights are `Process.loss_weight`.

    Args:
        network: the function that predicts.
        schedule: the forward process.
        x_0: (B, C, H, W) images.
        t: (B,) int64 timesteps, or B mixtures.
        eps: (B, C, H, W) noise.
    """
    prediction = network(schedule.add_noise(x_0, t, eps), t)
    difference: Tensor = schedule.target(x_0, t, eps) - prediction
    return schedule.weighted(difference.square().flatten(1).mean(1), t)


def training_loss(network: Forward, schedule: Process, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
    """Return the mean of the examples' `losses`, a scalar: the simplified loss of Ho et al. 2020 (arXiv 2006.11239)."""
    return losses(network, schedule, x_0, t, eps).mean()


def parameter_gradient(network: nn.Module, loss: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
    """Return the gradient of `loss` in each trainable parameter, by name; with `create_graph` it is differentiable."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = grad(loss, list(parameters.values()), create_graph=create_graph)
    return dict(zip(parameters, gradients, strict=True))
