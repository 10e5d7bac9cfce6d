"""The interface of a network, the same for client and attacker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from benchmark.diffusion.codec import Codec, Pixels
from benchmark.diffusion.landmarks import Landmarks
from benchmark.diffusion.process import Mixture

if TYPE_CHECKING:
    from diffusers import ModelMixin


class Denoiser(nn.Module, ABC):
    """A network as a function of (x_t, t). It stays in evaluation mode, so client and attacker use the same function.

    Attributes:
        part: the network's name: the prefix of its parameter names, and its subfolder in the directory of a pipeline.
        codec: converts images to the data that the network denoises, and back.
        supports_mixtures: whether the network accepts relaxed timesteps, see `predict_mixture`.
        times: (T,) input of the network for each timestep, see `Process.times`; not saved with the weights.
    """

    part: ClassVar[str]
    codec: ClassVar[Codec] = Pixels()
    supports_mixtures: ClassVar[bool] = False
    times: Tensor

    def __init__(self, network: ModelMixin, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times, persistent=False)
        self.add_module(self.part, network)
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor | Mixture) -> Tensor:
        """Return the prediction for noisy images `x_t` (B, C, H, W) at timesteps `t` (B,) in [0, T), of the images' shape."""
        return self.predict_mixture(x_t, t) if isinstance(t, Mixture) else self.predict(x_t, self.times[t])

    @abstractmethod
    def predict(self, x_t: Tensor, times: Tensor) -> Tensor:
        """Return the prediction for `x_t`, with `times` (B,) as the network's second input."""

    def predict_mixture(self, x_t: Tensor, t: Mixture) -> Tensor:
        """Return the prediction at relaxed timesteps, for the weighted mean of the timesteps' embeddings."""
        raise NotImplementedError(f"{type(self).__name__} mixes no time embeddings")

    @property
    def body(self) -> ModelMixin:
        """Return the diffusers network."""
        return self.get_submodule(self.part)

    @property
    def landmarks(self) -> Landmarks | None:
        """Return the layers that closed-form attacks use, or None if the family does not state them."""
        return None

    @property
    def device(self) -> str:
        """Return the device of the parameters."""
        return str(next(self.parameters()).device)
