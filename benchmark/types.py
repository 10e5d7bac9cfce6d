"""The records on the road: victim, observation, reconstruction. Frozen, and compared by identity since they hold tensors.

Shapes: images and noise are `(N, C, H, W)` float32, images in [-1, 1]; timesteps are `(N,)` int64 in [0, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Self

from torch import Tensor

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Process
from benchmark.disclosure import Declaration, Release, Scope, User, declaration, parameter

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

    Each field declares once whose update it describes, its place among releases, and who takes account of it
    (`benchmark.disclosure`); the bench's lists of parameters are derived from that.

    Attributes:
        kept_share: share of the coordinates of each client's update that is kept, in (0, 1]; the others are zero.
        clip_norm: l2 norm that each example's gradient is clipped to, at every local step.
        update_clip_norm: l2 norm that each client's update is clipped to.
        noise_std: standard deviation of the Gaussian noise on each coordinate of the update.
        gaussian_ratio: root mean square of Gaussian noise on each client's update, in units of that of the update.
        laplace_ratio: likewise of Laplace noise.
        bits: of a coordinate of each client's update after rounding, tensor by tensor.
        draws_per_image: draws of noise and timestep over which each example's gradient is a mean.
        least_timestep: the least that clients train on.
        withheld: part of the names of the parameters that do not leave the client.
        adapter_rank: rank of the adapters that alone leave the client.
        aggregated_clients: clients whose mean alone the server sees.
        disclosed_noise_error: standard deviation of the error on the diffusion noise that the client discloses.
    """

    kept_share: float | None = parameter(User.COMPARISON, scope=Scope.CLIENT, release=Release.PRUNE)
    clip_norm: float | None = parameter(User.COMPARISON, release=Release.CLIP)
    update_clip_norm: float | None = parameter(User.COMPARISON, scope=Scope.CLIENT, release=Release.CLIP)
    noise_std: float | None = parameter(User.LIKELIHOOD, release=Release.NOISE)
    gaussian_ratio: float | None = parameter(User.LIKELIHOOD, scope=Scope.CLIENT, release=Release.NOISE)
    laplace_ratio: float | None = parameter(User.DISTANCE, scope=Scope.CLIENT, release=Release.NOISE)
    bits: int | None = parameter(User.DISTANCE, scope=Scope.CLIENT, release=Release.ROUND)
    draws_per_image: int | None = parameter(User.ATTACK)
    least_timestep: int | None = parameter(User.ATTACK, implied_by_timestep=True)
    withheld: str | None = parameter(User.ENGINE)
    adapter_rank: int | None = parameter(User.ENGINE)
    aggregated_clients: int | None = parameter(User.ENGINE)
    disclosed_noise_error: float | None = parameter(User.LABEL)

    @property
    def disclosed(self) -> frozenset[str]:
        """The names of the fields that apply."""
        return frozenset(self._declared())

    @property
    def releases(self) -> frozenset[Release]:
        """The steps of a release that the fields that apply describe."""
        return frozenset(declared.release for declared in self._declared().values() if declared.release is not None)

    def telling(self, timestep_private: bool) -> frozenset[str]:
        """Return the disclosed fields that are news to an attack: one that knows the timesteps knows what they imply."""
        return frozenset(
            name for name, declared in self._declared().items() if timestep_private or not declared.implied_by_timestep
        )

    def of_aggregate(self) -> Self:
        """Return what still holds where the server receives the mean of several clients' updates."""
        void = {name: None for name, declared in self._declared().items() if declared.scope is Scope.CLIENT}
        return replace(self, **void)

    @classmethod
    def used_by(cls, *users: User) -> frozenset[str]:
        """Return the names of the fields that at least one of `users` takes account of."""
        return frozenset(f.name for f in fields(cls) if declaration(f).users & set(users))

    def _declared(self) -> dict[str, Declaration]:
        """Return the declarations of the fields that apply, by name."""
        return {f.name: declaration(f) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True, eq=False)
class Prior:
    """What an attacker knows of images in general: a trained denoiser with frozen weights.

    What `train` made never saw a victim; what others trained may have, and tables say where that is not known.

    Attributes:
        network: the denoiser; a copy, even where the attacked model is its own prior.
        schedule: its process.
    """

    network: Denoiser
    schedule: Process


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an attack learns of one round, and nothing else. Its tensors share no storage with the truth.

    N = clients x local_steps x batch_size private images lie behind the update.

    Attributes:
        update: what crossed the wire: the mean over clients of (theta_0 - theta_E) / (eta E), with E local steps of size eta.
            Where clients take one step each, that is the gradient of the mean loss of all N images.
        network: the granted weights, in evaluation mode.
        schedule: the granted process.
        image_shape: (C, H, W).
        batch_size: private images B in the batch of one local step.
        mean_colour: (C,) mean over public images, in [-1, 1].
        local_steps: steps E of plain SGD that each client took, each on a batch of its own.
        local_lr: their step size eta; None where it does not matter, since clients take one step.
        clients: clients K summed in the update.
        order_known: whether what is granted of timesteps and noise comes client by client, step by step; True where neither
            is, as an attack's own values have the order that it gives them.
        public: the defense's public parameters.
        timesteps: (N,), only where granted.
        noise: (N, C, H, W), only where granted, in the timesteps' order.
        prior: a trained denoiser, only where granted.
    """

    update: Update
    network: Denoiser
    schedule: Process
    image_shape: tuple[int, int, int]
    batch_size: int
    mean_colour: Tensor
    local_steps: int = 1
    local_lr: float | None = None
    clients: int = 1
    order_known: bool = True
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
    def image_count(self) -> int:
        """N, the private images behind the update."""
        return self.clients * self.local_steps * self.batch_size

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of all private images behind the update."""
        return (self.image_count, *self.image_shape)


@dataclass(frozen=True, eq=False)
class Victim:
    """The truth behind one round, for the clients and the judge alone: client by client, step by step, batch by batch.

    Attributes:
        images: (N, C, H, W) in [-1, 1].
        timesteps: (N,) drawn by the clients.
        noise: (N, C, H, W) drawn by the clients.
        sources: N names of the photographs that the images come from; crops of one photograph are not independent.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    sources: tuple[str, ...]

    def on(self, device: str) -> Victim:
        """Return a copy on a device."""
        images, timesteps, noise = (tensor.clone().to(device) for tensor in (self.images, self.timesteps, self.noise))
        return Victim(images, timesteps, noise, self.sources)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack rebuilt from one observation.

    Attributes:
        images: (N, C, H, W), in any order; the judge clips and assigns.
        evaluations: matching losses with gradient that were spent, restarts included.
        loss: the attack's own matching loss at `images`, None where it has none.
        timesteps: (N,) the attack's own estimate, in the images' order; None where it makes none.
        noise: (N, C, H, W) the attack's own estimate, in the images' order; None where it makes none.
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
        epsilon_round_rdp: the first by the RDP accountant.
        epsilon_total_rdp: the second by the RDP accountant.
        delta: probability that the guarantee fails.
        sample_rate: probability of each local image to be in a batch; 1 means the whole local data set.
        sampling: of the batches that the guarantee is for: `Poisson`, or `none` where it amplifies nothing.
        rounds: rounds that `epsilon_total` composes, each client taking part in every one: the server knows who takes part,
            so sampling of clients amplifies nothing against it.
        adjacency: the neighbouring relation.
        accountant: the method that bounds epsilon.
    """

    epsilon_round: float
    epsilon_total: float
    epsilon_round_rdp: float
    epsilon_total_rdp: float
    delta: float
    sample_rate: float
    sampling: str
    rounds: int
    adjacency: str
    accountant: str
