"""A cell of a grid: one combination of the axes, with everything that decides its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.scenario import Scenario, label

if TYPE_CHECKING:
    from benchmark.diffusion.models import Model
    from benchmark.plugins import Attack, Dataset, Defense
    from benchmark.types import Capability


@dataclass(frozen=True)
class Keys:
    """What each axis of a cell is, as canonical JSON. The keys name the cell's random streams.

    Attributes:
        dataset: its name, its fields and a hash of its images.
        scenario: what decides which timesteps and noise the clients draw.
        model: its preset or a hash of its files.
        prior: likewise of the granted prior.
        defense: its name and fields.
        attack: its name and fields.
    """

    dataset: str
    scenario: str
    model: str
    prior: str
    defense: str
    attack: str


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, with every axis resolved.

    A label says how an axis was asked for; two labels may ask for the same.

    Attributes:
        dataset_label: the data set as tables show it.
        defense_label: the defense as tables show it.
        attack_label: the attack as tables show it.
        scenario: the clients' practice, with an image size.
        model: the attacked model.
        dataset: where the private images come from.
        defense: what the clients do to protect themselves.
        attack: None is the oracle.
        trial: number of the draw of victims.
        victims: rounds of the scenario's clients.
        seed: the root of every random stream.
        success_db: PSNR from which an image counts as recovered.
        device: torch's name of the device.
        identity: hash of everything that decides the images.
        keys: what each axis is.
        dataset_remarks: what the user should know of the data set.
    """

    dataset_label: str
    defense_label: str
    attack_label: str
    scenario: Scenario
    model: Model
    dataset: Dataset
    defense: Defense
    attack: Attack | None
    trial: int
    victims: int
    seed: int
    success_db: float
    device: str
    identity: str
    keys: Keys
    dataset_remarks: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        assert self.scenario.image_size is not None
        return self.scenario.image_size

    @property
    def missing(self) -> frozenset[Capability]:
        """What the attack needs and is not granted; such a cell is skipped."""
        from benchmark.types import Capability

        withheld = self.defense.hides | (frozenset() if self.model.prior else {Capability.PRIOR})
        return self.attack.needs & withheld if self.attack else frozenset()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know of data set, model and prior."""
        prior = self.model.prior.remarks if self.model.prior else ()
        return (*self.dataset_remarks, *self.model.remarks, *prior)

    @property
    def name(self) -> str:
        """For people: the axes that usually differ."""
        scene = f"{self.dataset_label} · {label(self.scenario.record)} · {self.model.label}"
        return f"{self.attack_label} vs {self.defense_label} · {scene} · trial {self.trial}"

    @property
    def budget(self) -> int:
        """Evaluations that the attack may spend on one victim."""
        return self.attack.budget if self.attack else 0

    @property
    def control(self) -> bool:
        """Whether it is a floor or the ceiling, not an attack."""
        return self.attack is None or self.attack.control
