"""The records on the road: victim, observation, reconstruction. Frozen, and compared by identity since they hold tensors.

Shapes: images and noise are `(B, C, H, W)` float32, images in [-1, 1]; timesteps are `(B,)` int64 in [0, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum

from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.schedule import Schedule

Update = Mapping[str, Tensor]
"""What crosses the wire: one tensor per trainable parameter that leaves the client, under the parameter's name."""


class Capability(Enum):
    """A piece of knowledge that a threat model may grant and an attack may need.

    Timestep and noise are the client's, and a defense may hide them; the prior comes with the model.
    """

    TIMESTEP = "timestep"
    NOISE = "noise"
    PRIOR = "prior"


@dataclass(frozen=True)
class PublicParameters:
    """What everybody knows of the defense. A field that is None does not apply.

    Attributes:
        kept_share: share of each update's coordinates that is kept, in (0, 1].
        clip_norm: l2 norm that each example's gradient is clipped to.
        noise_std: standard deviation of the Gaussian noise on each coordinate of the update.
        disclosed_noise_error: standard deviation of the error on the diffusion noise that the client discloses.
    """

    kept_share: float | None = None
    clip_norm: float | None = None
    noise_std: float | None = None
    disclosed_noise_error: float | None = None

    @property
    def disclosed(self) -> frozenset[str]:
        """The names of the fields that apply."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True, eq=False)
class Prior:
    """What an attacker knows of images in general: a trained denoiser with frozen weights.

    What `train` made never saw a victim; what others trained may have, and tables say where that is not known.

    Attributes:
        network: the denoiser; a copy, even where the attacked model is its own prior.
        schedule: its noise schedule and prediction type.
    """

    network: Denoiser
    schedule: Schedule


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack learns of one client step, and nothing else. Its tensors share no storage with the truth.

    Attributes:
        update: what crossed the wire, the gradient of the client's mean loss under FedSGD.
        network: the granted weights, in evaluation mode.
        schedule: the granted noise schedule and prediction type.
        image_shape: (C, H, W).
        batch_size: number of private images B behind the update.
        mean_colour: (C,) mean over public images, in [-1, 1].
        local_steps: local steps behind the update.
        clients: clients summed in the update.
        public: the defense's public parameters.
        timesteps: (B,), only where granted.
        noise: (B, C, H, W), only where granted.
        prior: a trained denoiser, only where granted.
    """

    update: Update
    network: Denoiser
    schedule: Schedule
    image_shape: tuple[int, int, int]
    batch_size: int
    mean_colour: Tensor
    local_steps: int = 1
    clients: int = 1
    public: PublicParameters = field(default_factory=PublicParameters)
    timesteps: Tensor | None = None
    noise: Tensor | None = None
    prior: Prior | None = None

    @property
    def grants(self) -> frozenset[Capability]:
        """The knowledge that this observation really carries."""
        held = {Capability.TIMESTEP: self.timesteps, Capability.NOISE: self.noise, Capability.PRIOR: self.prior}
        return frozenset(capability for capability, value in held.items() if value is not None)

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the private batch."""
        return (self.batch_size, *self.image_shape)


@dataclass(frozen=True, eq=False)
class Victim:
    """The truth behind one client step, for the client and the judge alone.

    Attributes:
        images: (B, C, H, W) in [-1, 1].
        timesteps: (B,) drawn by the client.
        noise: (B, C, H, W) drawn by the client.
        sources: B names of the photographs that the images come from; crops of one photograph are not independent.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack rebuilt from one observation.

    Attributes:
        images: (B, C, H, W), in any order within the batch; the judge clips and assigns.
        evaluations: matching losses with gradient that were spent, restarts included.
        loss: the attack's own matching loss at `images`, None where it has none.
        timesteps: (B,) the attack's own estimate, None where it makes none.
        noise: (B, C, H, W) the attack's own estimate, in the images' order; None where it makes none.
        note: what its row should say of how it ran, e.g. a phase that was skipped.
        diverged: why the images mean nothing, None where they do.
    """

    images: Tensor
    evaluations: int
    loss: float | None = None
    timesteps: Tensor | None = None
    noise: Tensor | None = None
    note: str = ""
    diverged: str | None = None


@dataclass(frozen=True)
class Privacy:
    """A differential-privacy guarantee with everything that it depends on.

    Attributes:
        epsilon_round: spent in one round.
        epsilon_total: spent in `rounds` rounds.
        delta: probability that the guarantee fails.
        sample_rate: probability of each local image to be in a batch; 1 means the whole local data set.
        rounds: rounds that `epsilon_total` composes, each client taking part in every one: the server knows who takes part,
            so sampling of clients amplifies nothing against it.
        adjacency: the neighbouring relation.
        accountant: the method that bounds epsilon.
    """

    epsilon_round: float
    epsilon_total: float
    delta: float
    sample_rate: float
    rounds: int
    adjacency: str
    accountant: str
