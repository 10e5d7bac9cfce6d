"""The scene of a cell: the private images behind its updates, the observations, and the run of the attack on them.

The private images depend only on the dataset, their number and size, and the trial. Flips and crops, timesteps and noise also
depend on the scenario, and a defense may restrict the timesteps. The defense's randomness also depends on the defense. The
attack's randomness depends on the same axes as the noise, the model and the attack, but not on the defense: rows that differ
only in the defense are paired in these draws too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import (
    AttackerKnowledge,
    Round,
    draw_history,
    draw_victim,
    image_counts,
    observe,
    public_parameters,
    sent_part,
    split_victim,
)
from benchmark.clients.local_data import augmented
from benchmark.diffusion.codec import Codec
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.local_training import dropout
from benchmark.diffusion.models import build_process
from benchmark.diffusion.process import Process
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import Observation, Prior, Privacy, PublicParameters, Reconstruction, Victim


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that lies behind the updates of one cell. Images, victims and observations are drawn once and then kept.

    Attributes:
        cell: the cell.
        cache: the networks and mean colours that the cells of a run share.
    """

    cell: Cell
    cache: Cache

    @cached_property
    def practice(self) -> Scenario:
        """Return the scenario of one update: with all clients if the defense aggregates them, otherwise with one."""
        scenario = self.cell.scenario
        return scenario if self.cell.defense.aggregates else scenario.of_one_client()

    @property
    def updates_per_round(self) -> int:
        """Return the number of updates that the server receives per round: one, or one per client."""
        return self.cell.scenario.clients // self.practice.clients

    @cached_property
    def public(self) -> PublicParameters:
        """Return the public parameters of the defense, without those of a single client if an update averages several."""
        return public_parameters(self.cell.defense, self.practice)

    @cached_property
    def privacy(self) -> Privacy | None:
        """Return the defense's privacy guarantee, None if it has none."""
        return self.cell.defense.privacy(self.practice)

    @property
    def codec(self) -> Codec:
        """Return the model's codec between images and codes. Clients and attacks work on codes, the judge on images."""
        return self.cache.network(self.cell.model, self.cell.seed).codec

    @property
    def image_count(self) -> int:
        """Return the number of private images in all rounds."""
        return sum(self._image_counts_and_state[0])

    @cached_property
    def _image_counts_and_state(self) -> tuple[list[int], torch.Tensor]:
        """Return the number of images of each round, and the state of the clients' random stream after this draw."""
        draw = stream(self.cell.seed, "victims", *self._scene_axes)
        return image_counts(self.cell.scenario, self.cell.victims, draw), draw.get_state()

    @cached_property
    def victims(self) -> list[Victim]:
        """Return one victim per update: round by round, and client by client if updates are not aggregated."""
        counts, state = self._image_counts_and_state
        draw = torch.Generator()
        draw.set_state(state)
        scenario, schedule = self.cell.scenario, self.schedule
        least_timestep = self.cell.defense.least_timestep(scenario, schedule.steps)
        pictures, changes = iter(self.pictures), stream(self.cell.seed, "augment", *self._scene_axes)
        uses = [
            draw_victim([next(pictures) for _ in range(n // scenario.epochs)], scenario, schedule, draw, least_timestep)
            for n in counts
        ]
        rounds = [augmented(victim, scenario.augment, changes) for victim in uses]
        return [part for victim in rounds for part in split_victim(victim, self.updates_per_round)]

    @cached_property
    def pictures(self) -> list[Picture]:
        """Return the private images of all rounds.

        They are drawn from seed, data set and trial, so cells that differ only in the timestep use the same images.

        Raises:
            UserError: the data set has too few images, or one cannot be read.
        """
        draw = stream(self.cell.seed, "pictures", self.cell.keys.dataset, self.cell.trial)
        return self.cell.dataset.victims(self.image_count // self.cell.scenario.epochs, self.cell.image_size, draw)

    @cached_property
    def observations(self) -> list[Observation]:
        """Return one observation per update.

        The clients and their defense work on copies. Nothing that they change reaches the victims or another cell.
        """
        cell, device = self.cell, self.cell.device
        prepared = self.prepared_network()
        network, granted_network = (copy.deepcopy(prepared).to(device) for _ in range(2))
        colour = self.cache.mean_colour(cell.dataset, cell.image_size).to(device)
        granted = AttackerKnowledge(granted_network, colour, self.public, self._prior())
        defense_stream = stream(cell.seed, "defense", cell.keys.defense, *self._scene_axes)
        order_stream = stream(cell.seed, "order", *self._scene_axes)
        rounds = [
            Round(network, self.schedule.to(device), victim.on(device), self.practice, tuple(one.on(device) for one in history))
            for victim, history in zip(self.victims, self._histories, strict=True)
        ]
        return [observe(training, cell.defense, granted, defense_stream, order_stream) for training in rounds]

    @property
    def _histories(self) -> list[tuple[Victim, ...]]:
        """Return the earlier steps behind the kept states of each update's clients."""
        cell, practice = self.cell, self.practice
        if not practice.earlier_steps:
            return [()] * len(self.victims)
        public, draw = cell.dataset.public(cell.image_size), stream(cell.seed, "history", *self._scene_axes)
        least_timestep = cell.defense.least_timestep(cell.scenario, self.schedule.steps)
        return [draw_history(public, practice, self.schedule, draw, least_timestep) for _ in self.victims]

    def attack(self) -> list[Reconstruction]:
        """Run the cell's attack on the observations and return one reconstruction, in codes, per update.

        Only the oracle has access to the victims.
        """
        cell = self.cell
        if cell.attack is None:
            return [Reconstruction(self.codec.encode(victim.images.clone()), evaluations=0) for victim in self.victims]
        attack_stream = stream(cell.seed, "attack", cell.keys.attack, cell.keys.model, *self._scene_axes)
        return cell.attack.run(self.observations, attack_stream)

    def prepared_network(self) -> Denoiser:
        """Return the network that the clients train, with the defense's changes. Callers must copy it before changing it.

        Raises:
            UserError: the model cannot be loaded, or the defense does not fit the model.
        """
        network = self.cache.network(self.cell.model, self.cell.seed)
        return self.cell.defense.prepare(network, stream(self.cell.seed, "prepare", self.cell.keys.defense))

    def _prior(self) -> Prior | None:
        model = self.cell.model.prior
        if model is None:
            return None
        network = copy.deepcopy(self.cache.network(model, self.cell.seed)).to(self.cell.device).requires_grad_(False)
        return Prior(network, build_process(model).to(self.cell.device))

    @cached_property
    def schedule(self) -> Process:
        """Return the diffusion process of the attacked model, with the clients' weights of the loss."""
        return dataclasses.replace(build_process(self.cell.model), min_snr=self.cell.scenario.min_snr)

    @property
    def _scene_axes(self) -> tuple[object, ...]:
        return (self.cell.keys.dataset, self.cell.keys.scenario, self.cell.trial)


def check_inputs(cells: Sequence[Cell], cache: Cache) -> None:
    """Load all models and draw all images that the cells will use, so that missing ones are reported before the run starts.

    Args:
        cells: the planned cells.
        cache: the networks and mean colours that the cells share.

    Raises:
        UserError: a model cannot be loaded, a defense does not fit a model or a scenario, or a data set has too few images
            or an unreadable one.
    """
    for model, seed in {(model, cell.seed) for cell in cells for model in (cell.model, cell.model.prior) if model}:
        build_process(model)
        cache.network(model, seed)
    for cell in {
        (cell.model, cell.keys.defense, cell.scenario.dropout, cell.scenario.sent_parameters): cell for cell in cells
    }.values():
        network = Scene(cell, cache).prepared_network()
        sent_part({name: value for name, value in network.named_parameters() if value.requires_grad}, cell.scenario)
        with dropout(network, cell.scenario.dropout, torch.Generator()):
            pass  # a network without dropout layers is refused
    for cell in {(cell.model.steps, cell.keys.scenario, cell.keys.defense): cell for cell in cells}.values():
        cell.defense.least_timestep(cell.scenario, cell.model.steps)
    for cell in {(cell.keys.dataset, cell.keys.scenario, cell.trial): cell for cell in cells}.values():
        cache.mean_colour(cell.dataset, cell.image_size)
        _ = Scene(cell, cache).pictures
