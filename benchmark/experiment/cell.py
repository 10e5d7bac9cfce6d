"""A cell of a grid: one combination of dataset, scenario, model, defense, attack and trial."""

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
    """The content of each axis of a cell, as canonical JSON. The cell's random streams are seeded with these keys.

    Attributes:
        dataset: the data set's name, its fields and, where it has files, a hash of its images.
        scenario: the fields of the scenario that decide which timesteps and noise the clients draw.
        model: the attacked model's preset or a hash of its files, with its convention.
        prior: the same for the granted prior.
        defense: the defense's name and fields.
        attack: the attack's name and fields.
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

    A label is the text with which the grid named an axis. Two different labels may name the same thing.

    Attributes:
        dataset_label: the data set as tables show it.
        defense_label: the defense as tables show it.
        attack_label: the attack as tables show it.
        scenario: the clients' practice. Its image size is set.
        model: the attacked model.
        dataset: the source of the private images.
        defense: the defense of the clients.
        attack: the attack, None for the oracle.
        trial: number of the trial. Each trial draws its own private images, timesteps and noise.
        victims: number of rounds. All clients of the scenario train in each round.
        seed: root of all random streams.
        success_db: PSNR in dB from which an image counts as recovered.
        device: torch's name of the device.
        identity: hash of everything that decides the reconstructions and their success.
        keys: the content of each axis.
        dataset_remarks: notes on the data set that the user should know.
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
        """Return the side of the square images in pixels."""
        assert self.scenario.image_size is not None
        return self.scenario.image_size

    @property
    def missing(self) -> frozenset[Capability]:
        """Return what the attack needs but is not granted. If there is anything, the cell is skipped."""
        from benchmark.types import Capability

        withheld = self.defense.hides | (frozenset() if self.model.prior else {Capability.PRIOR})
        return self.attack.needs & withheld if self.attack else frozenset()

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return the notes on data set, model and prior that the user should know."""
        prior = self.model.prior.remarks if self.model.prior else ()
        return (*self.dataset_remarks, *self.model.remarks, *prior)

    @property
    def name(self) -> str:
        """Return a readable name from the axes that usually differ between cells."""
        scene = f"{self.dataset_label} · {label(self.scenario.record)} · {self.model.label}"
        return f"{self.attack_label} vs {self.defense_label} · {scene} · trial {self.trial}"

    @property
    def budget(self) -> int:
        """Return the number of evaluations that the attack may spend on one victim."""
        return self.attack.budget if self.attack else 0

    @property
    def control(self) -> bool:
        """Return whether the attack is a control: a floor, or the oracle as the ceiling."""
        return self.attack is None or self.attack.control
