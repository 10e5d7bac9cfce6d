"""The network as client and server both hold it."""

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
    """A network as a function of (x_t, t), always in evaluation mode: client and attacker hold one function.

    Attributes:
        part: the network's name, before those of its parameters and as its subfolder in a pipeline's directory.
        codec: from images to what the network denoises, and back.
        mixes: whether the network takes relaxed timesteps, see `mixed`.
        times: (T,) what the network is fed at each timestep, see `Process.times`; not saved with the weights.
    """

    part: ClassVar[str]
    codec: ClassVar[Codec] = Pixels()
    mixes: ClassVar[bool] = False
    times: Tensor

    def __init__(self, network: ModelMixin, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times, persistent=False)
        self.add_module(self.part, network)
        self.eval()

    def forward(self, x_t: Tensor, t: Tensor | Mixture) -> Tensor:
        """Return the prediction for noisy images `x_t` (B, C, H, W) at timesteps `t` (B,) in [0, T), of the images' shape."""
        return self.mixed(x_t, t) if isinstance(t, Mixture) else self.predict(x_t, self.times[t])

    @abstractmethod
    def predict(self, x_t: Tensor, times: Tensor) -> Tensor:
        """Return the prediction for `x_t` where the network is fed `times` (B,)."""

    def mixed(self, x_t: Tensor, t: Mixture) -> Tensor:
        """Return the prediction at relaxed timesteps, whose embeddings are mixed before the first layer that learns."""
        raise NotImplementedError(f"{type(self).__name__} mixes no time embeddings")

    @property
    def body(self) -> ModelMixin:
        """The network as diffusers has it."""
        return self.get_submodule(self.part)

    @property
    def landmarks(self) -> Landmarks | None:
        """The layers that closed forms ask for; None where the family does not know them."""
        return None

    @property
    def device(self) -> str:
        """The device of the parameters."""
        return str(next(self.parameters()).device)
