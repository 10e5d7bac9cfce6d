"""The scene of a cell: what lies behind the updates, what the server sees of them, and what an attack makes of that.

Images, timesteps and noise depend on (dataset, scenario, trial) alone, except that a defense may limit the timesteps. The
defense's randomness depends on the defense too, and the attack's on every axis.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from benchmark.base.seeds import stream
from benchmark.clients.federation import Granted, Round, disclosed, draw_victim, image_counts, observe, split
from benchmark.diffusion.codec import Codec
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.models import build_schedule
from benchmark.diffusion.process import Process
from benchmark.experiment.cache import Cache
from benchmark.experiment.cell import Cell
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import Observation, Prior, Privacy, PublicParameters, Reconstruction, Victim


@dataclass(frozen=True, eq=False)
class Scene:
    """What lies behind the updates of one cell. Each part is drawn when it is first asked for, and then kept.

    Attributes:
        cell: the cell.
        cache: what the cells of the run share.
    """

    cell: Cell
    cache: Cache

    @cached_property
    def practice(self) -> Scenario:
        """The practice behind one update: of a single client, unless the defense aggregates."""
        scenario = self.cell.scenario
        return scenario if self.cell.defense.aggregates else scenario.of_one_client()

    @property
    def updates_per_round(self) -> int:
        """The updates that the server sees of each round: one, or one of each client."""
        return self.cell.scenario.clients // self.practice.clients

    @cached_property
    def public(self) -> PublicParameters:
        """What everybody knows of the defense that says something of the update."""
        return disclosed(self.cell.defense, self.practice)

    @cached_property
    def privacy(self) -> Privacy | None:
        """The defense's guarantee, None where it has none."""
        return self.cell.defense.privacy(self.practice)

    @property
    def codec(self) -> Codec:
        """From images to what the model diffuses, and back. Clients and attacks work on codes, the judge on images."""
        return self.cache.network(self.cell.model, self.cell.seed).codec

    @property
    def image_count(self) -> int:
        """The private images of all rounds."""
        return sum(self._counted[0])

    @cached_property
    def _counted(self) -> tuple[list[int], torch.Tensor]:
        """The images behind each round, and the state of the clients' random stream after they were counted."""
        draw = stream(self.cell.seed, "victims", *self._axes)
        return image_counts(self.cell.scenario, self.cell.victims, draw), draw.get_state()

    @cached_property
    def victims(self) -> list[Victim]:
        """The truth behind each update: round by round, and client by client where updates are not aggregated."""
        counts, state = self._counted
        draw = torch.Generator()
        draw.set_state(state)
        scenario, schedule = self.cell.scenario, self.schedule
        least = self.cell.defense.least_timestep(scenario, schedule.steps)
        pictures = iter(self.pictures)
        rounds = [draw_victim([next(pictures) for _ in range(n)], scenario, schedule, draw, least) for n in counts]
        return [part for victim in rounds for part in split(victim, self.updates_per_round)]

    @cached_property
    def pictures(self) -> list[Picture]:
        """The private images. They depend on data set and trial alone: a curve over timesteps shows one set of photographs.

        Raises:
            UserError: there are not so many, or one cannot be read.
        """
        draw = stream(self.cell.seed, "pictures", self.cell.keys.dataset, self.cell.trial)
        return self.cell.dataset.victims(self.image_count, self.cell.image_size, draw)

    @cached_property
    def observations(self) -> list[Observation]:
        """What the server sees of each update.

        The clients and their defense work on copies: whatever they break, the truth and the next cell stay whole.
        """
        cell, device = self.cell, self.cell.device
        prepared = self.prepared()
        network, shown = (copy.deepcopy(prepared).to(device) for _ in range(2))
        colour = self.cache.mean_colour(cell.dataset, cell.image_size).to(device)
        granted = Granted(shown, colour, self.public, self._prior())
        noise = stream(cell.seed, "defense", cell.keys.defense, *self._axes)
        shuffle = stream(cell.seed, "order", *self._axes)
        rounds = [Round(network, self.schedule.to(device), victim.on(device), self.practice) for victim in self.victims]
        return [observe(trained, cell.defense, granted, noise, shuffle) for trained in rounds]

    def attack(self) -> list[Reconstruction]:
        """Let the cell's attack rebuild the victims' codes from the observations alone. Only the oracle sees the victims."""
        cell = self.cell
        if cell.attack is None:
            return [Reconstruction(self.codec.encode(victim.images.clone()), evaluations=0) for victim in self.victims]
        own = stream(cell.seed, "attack", cell.keys.attack, cell.keys.defense, cell.keys.model, *self._axes)
        return cell.attack.run(self.observations, own)

    def prepared(self) -> Denoiser:
        """Return the network that clients train, before it is copied for them.

        Raises:
            UserError: the model cannot be loaded, or the defense does not fit it.
        """
        network = self.cache.network(self.cell.model, self.cell.seed)
        return self.cell.defense.prepare(network, stream(self.cell.seed, "prepare", self.cell.keys.defense))

    def _prior(self) -> Prior | None:
        model = self.cell.model.prior
        if model is None:
            return None
        network = copy.deepcopy(self.cache.network(model, self.cell.seed)).to(self.cell.device).requires_grad_(False)
        return Prior(network, build_schedule(model).to(self.cell.device))

    @cached_property
    def schedule(self) -> Process:
        """The process of the attacked model."""
        return build_schedule(self.cell.model)

    @property
    def _axes(self) -> tuple[object, ...]:
        return (self.cell.keys.dataset, self.cell.keys.scenario, self.cell.trial)


def check_inputs(cells: Sequence[Cell], cache: Cache) -> None:
    """Load every model and draw every image that the cells will use, so that what is missing shows before anything runs.

    Raises:
        UserError: a model cannot be loaded, a defense does not fit it or the scenario, or a data set lacks images or holds
            one that cannot be read.
    """
    for model, seed in {(model, cell.seed) for cell in cells for model in (cell.model, cell.model.prior) if model}:
        build_schedule(model)
        cache.network(model, seed)
    for cell in {(cell.model, cell.keys.defense): cell for cell in cells}.values():
        Scene(cell, cache).prepared()
    for cell in {(cell.model.steps, cell.keys.scenario, cell.keys.defense): cell for cell in cells}.values():
        cell.defense.least_timestep(cell.scenario, cell.model.steps)
    for cell in {(cell.keys.dataset, cell.keys.scenario, cell.trial): cell for cell in cells}.values():
        cache.mean_colour(cell.dataset, cell.image_size)
        _ = Scene(cell, cache).pictures
