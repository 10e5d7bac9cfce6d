"""The base classes of attacks, defenses and data sets.

A plugin is one file with one frozen dataclass that derives from one of these classes. The fields of the dataclass are its
hyper-parameters, with the defaults of the paper. The name of the plugin is the stem of the file name. A numeric field
declares its range in its type (`benchmark.base.ranges`). A plugin that defines `__post_init__` calls
`super().__post_init__()` first.
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
from benchmark.diffusion.process import Process, draw_timesteps
from benchmark.diffusion.sgd import local_batches, mean_update
from benchmark.disclosure import User
from benchmark.outlook import Diagnosis, Outlook, unknown
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Privacy, PublicParameters, Reconstruction, Update, Victim


class _Checked:
    """Base class that rejects a hyper-parameter that is not finite or lies outside the declared range of its field."""

    def __post_init__(self) -> None:
        check_fields(self)


class Attack(_Checked, ABC):
    """An attack rebuilds private images from observations. An attack that uses the engine derives from `MatchingAttack`.

    Attributes:
        needs: the capabilities that the attack requires. If one is not granted, the cell is `skipped`.
        adapts_to: fields of `PublicParameters` that the attack uses. It is adaptive if the defense discloses one of them.
        control: whether this is a control. Every table has the controls, and they set the floor.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset()
    adapts_to: ClassVar[frozenset[str]] = frozenset()
    control: ClassVar[bool] = False

    @property
    def budget(self) -> int:
        """Return the maximum number of evaluations for one victim, restarts included: the field `evaluations`, else 0."""
        return int(getattr(self, "evaluations", 0))

    @abstractmethod
    def run(self, observations: Sequence[Observation], generator: torch.Generator) -> list[Reconstruction]:
        """Attack independent victims.

        Args:
            observations: one observation per victim.
            generator: the random stream of the attack, on the CPU. The attack must not use any other source of randomness.

        Returns:
            One reconstruction per observation, in the same order.
        """

    def outlook(self, diagnosis: Diagnosis, success_db: float) -> Outlook:
        """Return whether the median PSNR of the images of one update should reach `success_db`, by the diagnosis alone.

        A rule should follow from theory or from published tables. Where budget or chance decides, the answer is "unknown".
        `run` must not depend on this method: its rules are no part of a cell's identity.
        """
        return unknown("the attack states no rule")


class MatchingAttack(Attack):
    """An attack that searches with `benchmark.matching.engine`.

    The public parameters that the engine uses are added to `adapts_to` automatically.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.adapts_to |= PublicParameters.used_by(User.ENGINE)


@dataclass(frozen=True, eq=False)
class ClientStep:
    """One local step on a private batch, as a defense receives it.

    Attributes:
        network: the network at the start of this step: the global weights at the first step, later the client's own.
        schedule: the diffusion process.
        victim: the private batch with its timesteps and noise.
        scenario: the clients' practice. Under Poisson sampling its batch size may differ from the size of this batch.
        least: smallest timestep that clients train on.
    """

    network: Denoiser
    schedule: Process
    victim: Victim
    scenario: Scenario
    least_timestep: int = 0

    def loss(self, network: torch.nn.Module) -> Tensor:
        """Return the mean training loss of the batch under `network`, which may wrap the client's network."""
        x_0 = self.network.codec.encode(self.victim.images)
        return training_loss(network, self.schedule, x_0, self.victim.timesteps, self.victim.noise)

    def gradient(self) -> Update:
        """Return the gradient of the mean loss, one tensor per trainable parameter: the mean over the accumulated parts."""
        (places,) = local_batches(len(self.victim.images), 1, self.scenario.accumulation)
        parts = [dataclasses.replace(self, victim=self.victim.part(own)) for own in places]
        return mean_update([parameter_gradient(self.network, part.loss(self.network)) for part in parts])

    def redrawn(self, draws: int, generator: torch.Generator) -> ClientStep:
        """Return this step with each image repeated `draws` times in a row.

        Each copy gets fresh noise. It also gets a fresh timestep, unless the scenario fixes the timesteps.
        """
        victim, steps = self.victim, self.schedule.steps
        images = victim.images.repeat_interleave(draws, dim=0)
        timesteps = victim.timesteps.repeat_interleave(draws)
        if not self.scenario.fixed_timesteps:
            timesteps = draw_timesteps(len(images), self.least_timestep, steps, generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        sources = tuple(source for source in victim.sources for _ in range(draws))
        return dataclasses.replace(self, victim=Victim(images, timesteps, noise, sources))


class Defense(_Checked):
    """A defense changes what an honest client does. By default, no method changes anything.

    A defense overrides the methods for the points of a round where it acts. The methods are listed in the order in which
    they are called. A plugin sets `hides`, `aggregates` and `uses_lr` as class attributes.
    """

    @property
    def hides(self) -> frozenset[Capability]:
        """Return which of timestep and noise the client keeps private, so that they are not granted to the attack."""
        return frozenset()

    @property
    def aggregates(self) -> bool:
        """Return whether the server sees only the mean of the clients' updates, and no single update."""
        return False

    @property
    def uses_lr(self) -> bool:
        """Return whether the step size decides what the defense does, because it acts on the change of the weights."""
        return False

    def prepare(self, network: Denoiser, generator: torch.Generator) -> Denoiser:
        """Return the network that clients train and that the attack is granted: `network` itself, or a changed copy.

        The method does not modify `network`.

        Raises:
            UserError: the defense does not fit the network.
        """
        return network

    def least_timestep(self, scenario: Scenario, steps: int) -> int:
        """Return the smallest timestep that clients train on.

        Args:
            scenario: the clients' practice.
            steps: number of timesteps T of the model.

        Raises:
            UserError: the defense contradicts the scenario.
        """
        return 0

    def gradient(self, step: ClientStep, generator: torch.Generator) -> Update:
        """Return the combined gradient of all examples at one local step; by default, the gradient of their mean loss."""
        return step.gradient()

    def release(self, update: Update, scenario: Scenario, generator: torch.Generator) -> Update:
        """Return what one client sends. By default the update is sent unchanged.

        Args:
            update: (theta_0 - theta_E) / (lr E), by default the mean of the client's combined gradients.
            scenario: the clients' practice. The change of the weights is -`scenario.scale` times the update.
            generator: the random stream of the defense.
        """
        return update

    def disclose(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the clients disclose about their noise (N, C, H, W) if it is not hidden; by default, the noise itself."""
        return noise

    def public(self, scenario: Scenario) -> PublicParameters:
        """Return the parameters of the defense that everybody knows, the attacker too."""
        return PublicParameters()

    def privacy(self, scenario: Scenario) -> Privacy | None:
        """Return the differential-privacy guarantee of the defense, or None if it has none."""
        return None


@dataclass(frozen=True, eq=False)
class Picture:
    """An image (C, H, W) float32 in [-1, 1], with the name of the photograph that it was cut from."""

    image: Tensor
    source: str


@dataclass(frozen=True)
class Contents:
    """The content hashes of all source images of a data set, for its public and its private part.

    A hash has 16 hex characters of blake2b. Two files with the same hash hold the same image, regardless of name and folder.
    """

    public: frozenset[str]
    private: frozenset[str]


class Dataset(_Checked, ABC):
    """A data set holds real images in two disjoint parts: public images, which an attacker may know, and private images.

    Attributes:
        location: names of the fields that say where the images are stored. Random streams and cell identities use the
            fingerprint instead of these fields.
    """

    location: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def victims(self, count: int, size: int, generator: torch.Generator) -> list[Picture]:
        """Draw `count` private images of `size` x `size` pixels, from as many different sources as possible.

        Raises:
            UserError: there are too few images, or one cannot be read.
        """

    @abstractmethod
    def public(self, size: int) -> list[Picture]:
        """Return the public images at `size` x `size` pixels, the same at every call.

        Their sources are disjoint from the sources of the victims.

        Raises:
            UserError: there are none, or one cannot be read.
        """

    def training(self, size: int) -> Tensor:
        """Return the (N, 3, size, size) public images for training a model, the same at every call.

        By default, these are the images of `public`.

        Raises:
            UserError: there are none, or one cannot be read.
        """
        return torch.stack([picture.image for picture in self.public(size)])

    def fingerprint(self) -> str:
        """Return a text that identifies the images, e.g. a hash of the files.

        It covers what the plugin's source code and fields do not. It does not depend on where the images are stored.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return ""

    def contents(self) -> Contents | None:
        """Return the hashes of all images if the user's files decide the split into public and private, else None.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return None

    def remarks(self) -> tuple[str, ...]:
        """Return remarks about the files for the user, e.g. how many were skipped.

        Raises:
            UserError: the files are missing or cannot be read.
        """
        return ()
