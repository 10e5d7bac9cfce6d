"""Where the weight gradient of a layer tells of its input: the plain convolutions, and the rank that a gradient can have.

The weight gradient of a layer is a product G = D P. The rows of P (M, n) are the patches of the layer's input, one for each
position of each image behind the update. The matrix D (O, M) holds what flows back into the layer's O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.diffusion.denoiser import Denoiser
from benchmark.types import Observation

RANK_TOLERANCE = 1e-6
"""Share of the largest singular value above which a direction of a gradient is no rounding error."""


@dataclass(frozen=True, eq=False)
class Site:
    """A convolution of the network, with the size of its output.

    Attributes:
        name: the name of the module.
        layer: the module.
        height: the height of its output.
        width: the width of its output.
    """

    name: str
    layer: nn.Conv2d
    height: int
    width: int

    @property
    def overlaps(self) -> bool:
        """Return whether the patches overlap in such a way that the layer's input can be read, see `activations`."""
        return (self.layer.kernel_size, self.layer.stride, self.layer.padding) == ((3, 3), (1, 1), (1, 1))

    def patches(self, value: Tensor) -> Tensor:
        """Return the patches (P, N, C K^2) of an input (P, C, H, W)."""
        layer = self.layer
        assert not isinstance(layer.padding, str)  # `sites` leaves such layers out
        return F.unfold(value, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT


def spans_patches(patches: int, outputs: int, width: int) -> bool:
    """Return whether the rows of a weight gradient (O, n) span all M patches of a layer, and not the whole space.

    Args:
        patches: M, the number of images times the positions of the output.
        outputs: O, the number of output channels.
        width: n, the number of entries of a patch.
    """
    return patches <= outputs and patches < width


def is_signal(sigma: Tensor) -> Tensor:
    """Return which of the singular values (R,) of a gradient, largest first, are no rounding errors."""
    return sigma > RANK_TOLERANCE * sigma[0]


def sites(network: Denoiser, image_shape: Sequence[int]) -> list[Site]:
    """Return the network's plain convolutions in the order of the forward pass.

    A plain convolution has no groups, no dilation and explicit zero padding.
    """
    passed: list[Site] = []
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and _is_plain(layer)]

    def note(name: str, layer: nn.Conv2d) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, inputs, output: passed.append(Site(name, layer, output.shape[-2], output.shape[-1]))

    handles = [layer.register_forward_hook(note(name, layer)) for name, layer in layers]
    try:
        with torch.no_grad():
            network(
                torch.zeros(1, *image_shape, device=network.device), torch.zeros(1, dtype=torch.int64, device=network.device)
            )
    finally:
        for handle in handles:
            handle.remove()
    return passed


def sites_of_each(observations: Sequence[Observation]) -> list[list[Site]]:
    """Return the sites of each observation's network: the same objects for one network and one image shape."""
    distinct = {(id(observation.network), observation.image_shape): observation for observation in observations}
    found = {key: sites(observation.network, observation.image_shape) for key, observation in distinct.items()}
    return [found[id(observation.network), observation.image_shape] for observation in observations]


def _is_plain(layer: nn.Conv2d) -> bool:
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return padded and layer.groups == 1 and layer.dilation == (1, 1)
