"""What an attack, a defense and a dataset are. A plugin is one file with one frozen dataclass that derives from one of them.

The dataclass' fields are the hyper-parameters, with the paper's defaults; the file's stem is the plugin's name. A number
declares its range in its type (`benchmark.base.ranges`). A plugin with a `__post_init__` of its own calls that of its base
first.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmark.base.ranges import check_fields
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.process import Process, uniform_timesteps
from benchmark.disclosure import User
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Privacy, PublicParameters, Reconstruction, Update, Victim


class _Checked:
    """Refuses a hyper-parameter that is not finite or lies outside the range that its field declares."""

    def __post_init__(self) -> None:
        check_fields(self)


class Attack(_Checked, ABC):
    """Rebuilds private images from observations. One that searches with the engine derives from `MatchingAttack`.

    Attributes:
        needs: the knowledge it cannot do without; where it is not granted, the cell is `skipped`.
        adapts_to: fields of `PublicParameters` that it uses; where a defense discloses one, the attack is adaptive.
        control: whether it is a floor that ships in every table, not an attack.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset()
    adapts_to: ClassVar[frozenset[str]] = frozenset()
    control: ClassVar[bool] = False

    @property
    def budget(self) -> int:
        """The most evaluations it spends on one victim, restarts included: its field `evaluations`, else 0."""
        return int(getattr(self, "evaluations", 0))

    @abstractmethod
    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """Attack independent victims; one reconstruction each, in their order.

        Args:
            observations: what the server saw of each victim's round.
            generator: the attack's own random stream, on the CPU; no other randomness may be used.
        """


class MatchingAttack(Attack):
    """An attack that searches with `benchmark.matching.engine`.

    `adapts_to` holds what the engine takes account of by itself, beside what the class names.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.adapts_to |= PublicParameters.used_by(User.ENGINE)


@dataclass(frozen=True, eq=False)
class ClientStep:
    """One local step on a private batch, as a defense sees it.

    Attributes:
        network: the weights at that step: the global ones at the first, the client's own after it.
        schedule: the process.
        victim: the private batch with its timesteps and noise.
        scenario: the clients' practice. Its batch size differs from that of the batch at hand under Poisson sampling.
        least: the least timestep that clients train on.
    """

    network: Denoiser
    schedule: Process
    victim: Victim
    scenario: Scenario
    least: int = 0

    def loss(self, network: torch.nn.Module) -> Tensor:
        """The mean training loss of the batch under `network`, which may wrap the client's own."""
        x_0 = self.network.codec.encode(self.victim.images)
        return training_loss(network, self.schedule, x_0, self.victim.timesteps, self.victim.noise)

    def gradient(self) -> Update:
        """The gradient of the mean loss, one tensor per trainable parameter."""
        return parameter_gradient(self.network, self.loss(self.network))

    def redrawn(self, draws: int, generator: torch.Generator) -> ClientStep:
        """The step with each image there `draws` times in a row, with fresh noise and, unless it is fixed, a fresh timestep."""
        victim, steps = self.victim, self.schedule.steps
        images = victim.images.repeat_interleave(draws, dim=0)
        timesteps = victim.timesteps.repeat_interleave(draws)
        if not self.scenario.fixed_timesteps:
            timesteps = uniform_timesteps(len(images), self.least, steps, generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        sources = tuple(source for source in victim.sources for _ in range(draws))
        return dataclasses.replace(self, victim=Victim(images, timesteps, noise, sources))


class Defense(_Checked):
    """Changes what an honest client does, at the point where it really acts. The defaults change nothing.

    The methods stand in the order in which a round passes them. A plugin sets `hides` and `aggregates` as class attributes.
    """

    @property
    def hides(self) -> frozenset[Capability]:
        """The client's knowledge that is not granted to the attack, of timestep and noise."""
        return frozenset()

    @property
    def aggregates(self) -> bool:
        """Whether the server sees the mean of the clients' updates alone, not each of them."""
        return False

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """The network that clients train and the server grants: `network` itself, which stays as it is, or a changed copy.

        Raises:
            UserError: the defense does not fit the network.
        """
        return network

    def least_timestep(self, scenario: Scenario, steps: int) -> int:
        """The least timestep that clients train on, of the model's `steps`.

        Raises:
            UserError: the defense contradicts the scenario.
        """
        return 0

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """How the examples' gradients are combined at one local step; by default the gradient of their mean loss."""
        return step.gradient()

    def release(self, update: Update, generator: torch.Generator) -> Update:
        """What leaves one client, from the mean of its steps' combined gradients; by default all of it."""
        return update

    def disclose(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """What the clients tell of their noise (N, C, H, W) where that is not hidden; by default the noise itself."""
        return noise

    def public(self, scenario: Scenario) -> PublicParameters:
        """What everybody knows of the defense."""
        return PublicParameters()

    def privacy(self, scenario: Scenario) -> Privacy | None:
        """Its differential-privacy guarantee, None where it has none."""
        return None


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (C, H, W) float32 in [-1, 1], and the photograph that it shows a part of."""

    image: Tensor
    source: str


@dataclass(frozen=True)
class Contents:
    """What the images of both parts of a data set hold: one hash per source image, 16 hex characters of blake2b.

    Two images with the same hash are the same image, whatever their names and folders.
    """

    public: frozenset[str]
    private: frozenset[str]


class Dataset(_Checked, ABC):
    """Real images in two disjoint parts: public ones, that an attacker may know, and the victims' own.

    Attributes:
        location: names of the fields that say where the images lie; the fingerprint takes their place in random streams and
            identities.
    """

    location: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """Draw `count` private images of size `size` x `size`, from as many sources as there are.

        Raises:
            UserError: there are not so many, or one cannot be read.
        """

    @abstractmethod
    def public(self, size: int) -> list[Picture]:
        """The public images at that size, the same at every call, from sources that no victim comes from.

        Raises:
            UserError: there are none, or one cannot be read.
        """

    def training(self, size: int) -> Tensor:
        """(N, 3, size, size) public images to train a model on, the same at every call; by default those of `public`.

        Raises:
            UserError: there are none, or one cannot be read.
        """
        return torch.stack([picture.image for picture in self.public(size)])

    def fingerprint(self) -> str:
        """Return what else than the plugin's own source and fields decides the images, e.g. a hash of files.

        It does not depend on where the images lie.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return ""

    def contents(self) -> Contents | None:
        """Return the hashes of all images where the user's files decide which part an image belongs to, else None.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return None

    def remarks(self) -> tuple[str, ...]:
        """Return what the user should know about the files, e.g. how many were passed over.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return ()
