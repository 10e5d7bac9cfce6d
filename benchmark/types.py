"""The records that clients, attacks and the judge exchange: victim, observation, reconstruction.

They are frozen. Records that hold tensors are compared by identity.

Shapes: images and noise are `(N, C, H, W)` float32, images in [-1, 1]; timesteps are `(N,)` int64 in [0, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Self

from torch import Tensor

from benchmark.base.practice import Message, Optimiser
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.process import Process
from benchmark.disclosure import Declaration, Release, Scope, User, declaration, parameter

Update = Mapping[str, Tensor]
"""What a client sends: one tensor for each trainable parameter that it sends, by the name of the parameter."""


class Capability(Enum):
    """A piece of knowledge that a threat model may grant and an attack may need.

    The client knows timestep and noise, and a defense may hide them. The prior comes with the model.
    """

    TIMESTEP = "timestep"
    NOISE = "noise"
    PRIOR = "prior"


@dataclass(frozen=True)
class PublicParameters:
    """The parameters of a defense that everybody knows, the attacker too. A field that is None does not apply.

    Each field declares once which update it describes, which step of a release it describes, and which code uses it
    (`benchmark.disclosure`). All other lists of public parameters are derived from these declarations.

    Attributes:
        kept_share: share of the coordinates of each client's update that is kept, in [0, 1]; the others are zero.
        clip_norm: l2 norm that each example's gradient is clipped to, at every local step.
        update_clip_norm: l2 norm that each client's update is clipped to.
        coordinate_limit: largest magnitude of a coordinate of each client's update. Coordinates beyond it are clipped to it.
        noise_std: standard deviation of the Gaussian noise on each coordinate of the update.
        laplace_std: standard deviation of the Laplace noise on each coordinate of each client's update that is kept.
        gaussian_ratio: root mean square of the Gaussian noise on each client's update, divided by the root mean square of
            the update.
        laplace_ratio: the same ratio for Laplace noise.
        bits: number of bits of each coordinate of each client's update after rounding. Each tensor is rounded separately.
        draws_per_image: number of draws of noise and timestep over which each example's gradient is averaged.
        least_timestep: smallest timestep that clients train on.
        withheld: a part of the name. Parameters with this part in their names are not sent.
        adapter_rank: rank of the adapters. The client sends the update of the adapters only.
        aggregated_clients: number of clients that are averaged. The server sees only the mean of their updates.
        disclosed_noise_error: standard deviation of the error on the diffusion noise that the client discloses.
    """

    kept_share: float | None = parameter(User.COMPARISON, User.RESTORATION, scope=Scope.CLIENT, release=Release.PRUNE)
    clip_norm: float | None = parameter(User.COMPARISON, release=Release.CLIP)
    update_clip_norm: float | None = parameter(User.COMPARISON, scope=Scope.CLIENT, release=Release.CLIP)
    coordinate_limit: float | None = parameter(User.COMPARISON, User.RESTORATION, scope=Scope.CLIENT, release=Release.LIMIT)
    noise_std: float | None = parameter(User.LIKELIHOOD, User.RESTORATION, release=Release.NOISE)
    laplace_std: float | None = parameter(User.DISTANCE, User.RESTORATION, scope=Scope.CLIENT, release=Release.NOISE)
    gaussian_ratio: float | None = parameter(User.LIKELIHOOD, User.RESTORATION, scope=Scope.CLIENT, release=Release.NOISE)
    laplace_ratio: float | None = parameter(User.DISTANCE, User.RESTORATION, scope=Scope.CLIENT, release=Release.NOISE)
    bits: int | None = parameter(User.DISTANCE, User.RESTORATION, scope=Scope.CLIENT, release=Release.ROUND)
    draws_per_image: int | None = parameter(User.ATTACK)
    least_timestep: int | None = parameter(User.ATTACK, implied_by_timestep=True)
    withheld: str | None = parameter(User.ENGINE)
    adapter_rank: int | None = parameter(User.ENGINE)
    aggregated_clients: int | None = parameter(User.ENGINE)
    disclosed_noise_error: float | None = parameter(User.LABEL)

    @property
    def disclosed(self) -> frozenset[str]:
        """Return the names of the fields that apply."""
        return frozenset(self._declared())

    @property
    def releases(self) -> frozenset[Release]:
        """Return the steps of a release that the applying fields describe."""
        return frozenset(declared.release for declared in self._declared().values() if declared.release is not None)

    def informative(self, timestep_private: bool) -> frozenset[str]:
        """Return the names of the disclosed fields that give an attack new information.

        An attack that knows the timesteps learns nothing from a field that they already imply.
        """
        return frozenset(
            name for name, declared in self._declared().items() if timestep_private or not declared.implied_by_timestep
        )

    def for_aggregate(self) -> Self:
        """Return the parameters that still apply when the server receives the mean of several clients' updates."""
        inapplicable = {name: None for name, declared in self._declared().items() if declared.scope is Scope.CLIENT}
        return replace(self, **inapplicable)

    @classmethod
    def used_by(cls, *users: User) -> frozenset[str]:
        """Return the names of the fields that at least one of `users` uses."""
        return frozenset(f.name for f in fields(cls) if declaration(f).users & set(users))

    def _declared(self) -> dict[str, Declaration]:
        """Return the declarations of the fields that apply, by field name."""
        return {f.name: declaration(f) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True, eq=False)
class Prior:
    """What an attacker knows about images in general: a trained denoiser with frozen weights.

    A model made by `train` was never trained on a victim. A model from elsewhere may have been; the tables say so where
    this is not known.

    Attributes:
        network: the denoiser. It is a copy, even if the attacked model is its own prior.
        schedule: the diffusion process of the denoiser.
    """

    network: Denoiser
    schedule: Process


@dataclass(frozen=True, eq=False)
class Observation:
    """All that an attack receives about one update. Its tensors share no storage with the victim's.

    N = clients x local_steps x batch_size private images lie behind the update.

    Attributes:
        update: the update that the server receives: the mean over clients of (theta_0 - theta_E) / (eta E), with E local
            steps of step size eta. If each client takes one step of plain SGD, this is the gradient of the mean loss of all N
            images. If averaged weights were sent, they replace theta_E, and `Message.gain` replaces E.
        network: the granted weights, in evaluation mode.
        schedule: the granted diffusion process.
        image_shape: (C, H, W).
        batch_size: number of private images B in the batch of one local step.
        mean_colour: (C,) mean over public images, in [-1, 1].
        local_steps: number E of steps that each client took, each on a different batch.
        local_lr: step size eta of these steps; None where it has no effect (`Scenario.lr_matters`, `Defense.uses_lr`).
        optimiser: the optimiser of these steps.
        message: what the client sent. `update` was computed from it.
        clients: number of clients K whose updates are averaged in `update`.
        dropout: probability of the network's dropout layers while the client trained.
        order_known: whether the granted timesteps and noise come in the order of clients and steps. It is True if neither
            is granted, because the attack then chooses the order of its own values.
        public: the public parameters of the defense.
        timesteps: (N,), only if granted.
        noise: (N, C, H, W), only if granted, in the same order as the timesteps.
        prior: a trained denoiser, only if granted.
    """

    update: Update
    network: Denoiser
    schedule: Process
    image_shape: tuple[int, int, int]
    batch_size: int
    mean_colour: Tensor
    local_steps: int = 1
    local_lr: float | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    message: Message = field(default_factory=Message)
    clients: int = 1
    dropout: float = 0.0
    order_known: bool = True
    public: PublicParameters = field(default_factory=PublicParameters)
    timesteps: Tensor | None = None
    noise: Tensor | None = None
    prior: Prior | None = None

    @property
    def grants(self) -> frozenset[Capability]:
        """Return the capabilities for which this observation holds a value."""
        values = {Capability.TIMESTEP: self.timesteps, Capability.NOISE: self.noise, Capability.PRIOR: self.prior}
        return frozenset(capability for capability, value in values.items() if value is not None)

    @property
    def is_gradient(self) -> bool:
        """Return whether the update is the mean of gradients as they were computed: of plain SGD, and sent without rounding.

        An average of weights is none: it is rounded.
        """
        return self.optimiser.is_plain and self.message.is_exact and self.message.ema is None

    @property
    def image_count(self) -> int:
        """Return N, the number of private images behind the update."""
        return self.clients * self.local_steps * self.batch_size

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Return (N, C, H, W), the shape of all private images behind the update."""
        return (self.image_count, *self.image_shape)


@dataclass(frozen=True, eq=False)
class Victim:
    """The private images behind one update, with their timesteps and noise (the ground truth).

    Only the clients and the judge use it. The images are ordered by client, then by local step, then within the batch.

    Attributes:
        images: (N, C, H, W) in [-1, 1].
        timesteps: (N,) drawn by the clients.
        noise: (N, C, H, W) drawn by the clients.
        sources: N names of the photographs that the images come from. Crops of one photograph are not independent.
    """

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    sources: tuple[str, ...]

    def part(self, places: slice) -> Victim:
        """Return some of the images, with their draws."""
        return Victim(self.images[places], self.timesteps[places], self.noise[places], self.sources[places])

    def on(self, device: str) -> Victim:
        """Return a copy on the given device."""
        images, timesteps, noise = (tensor.clone().to(device) for tensor in (self.images, self.timesteps, self.noise))
        return Victim(images, timesteps, noise, self.sources)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The images that an attack rebuilt from one observation.

    Attributes:
        images: (N, C, H, W), in any order. The judge clips them and assigns each one to a private image.
        evaluations: number of evaluations (matching loss with gradient) that the attack spent, restarts included.
        loss: the attack's own matching loss at `images`; None if it has none.
        timesteps: (N,) the attack's own estimate, in the order of `images`; None if it makes none.
        noise: (N, C, H, W) the attack's own estimate, in the order of `images`; None if it makes none.
        predicted_psnr: (N,) the PSNR in dB that the attack predicts for each image without the truth; None if it predicts none.
        note: a remark for the table row about how the attack ran, e.g. a phase that was skipped.
        diverged: the reason why the images are meaningless; None if they are not.
    """

    images: Tensor
    evaluations: int
    loss: float | None = None
    timesteps: Tensor | None = None
    noise: Tensor | None = None
    predicted_psnr: Tensor | None = None
    note: str = ""
    diverged: str | None = None


@dataclass(frozen=True)
class Privacy:
    """A differential-privacy guarantee with everything that it depends on.

    Attributes:
        epsilon_round: epsilon spent in one round.
        epsilon_total: epsilon spent in `rounds` rounds.
        epsilon_round_rdp: epsilon of one round by the RDP accountant.
        epsilon_total_rdp: epsilon of `rounds` rounds by the RDP accountant.
        delta: probability that the guarantee fails.
        sample_rate: probability that a local image is in a batch; 1 means the whole local data set.
        sampling: how the batches are sampled: `Poisson`, or `none` if sampling does not amplify the guarantee.
        rounds: number of rounds that `epsilon_total` composes. Each client takes part in every round. Sampling of clients
            would amplify nothing, because the server knows which clients take part.
        adjacency: the neighbouring relation between data sets.
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
