"""The training loss and its gradient: one definition for client and attacker, so that neither scales it differently."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd import grad

from benchmark.diffusion.process import Mixture, Process

Forward = Callable[[Tensor, Tensor | Mixture], Tensor]
"""A network as a function of noisy images (B, C, H, W) and B timesteps, as `Denoiser.forward` is."""


def losses(network: Forward, schedule: Process, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
    """Each example's mean || target - net(x_t, t) ||^2 over channels and pixels, (B,).

    Shapes: `x_0` and `eps` (B, C, H, W), `t` (B,) or B mixtures.
    """
    prediction = network(schedule.add_noise(x_0, t, eps), t)
    residual: Tensor = schedule.target(x_0, t, eps) - prediction
    return residual.square().flatten(1).mean(1)


def training_loss(network: Forward, schedule: Process, x_0: Tensor, t: Tensor | Mixture, eps: Tensor) -> Tensor:
    """L, the mean of the examples' `losses`, a scalar: the simplified loss of Ho et al. 2020 (arXiv 2006.11239)."""
    return losses(network, schedule, x_0, t, eps).mean()


def parameter_gradient(network: nn.Module, loss: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
    """The gradient of `loss` in each trainable parameter, by name; `create_graph` keeps it differentiable."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    gradients = grad(loss, list(named.values()), create_graph=create_graph)
    return dict(zip(named, gradients, strict=True))
