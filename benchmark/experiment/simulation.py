"""One simulated update in memory, and an attack on it: part of the Python interface (`import gidbench`).

Names of plugins read as on the command line, such as `gradient_pruning[keep=0.1]`. Every function configures torch as the
command line does: one thread for sums unless OMP_NUM_THREADS is set, and no tf32 on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from benchmark.base.errors import UserError
from benchmark.base.machine import configure_torch, device_name
from benchmark.base.paths import user_path
from benchmark.base.seeds import stream
from benchmark.base.spec import parse_one
from benchmark.evaluation.judge import Sample, judge
from benchmark.experiment.cache import Cache
from benchmark.experiment.grid import Grid
from benchmark.experiment.job import Job
from benchmark.experiment.scene import Scene, check_inputs
from benchmark.plugins import Attack
from benchmark.registry import Registry
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Reconstruction, Victim


@dataclass(frozen=True, eq=False)
class Simulation:
    """One simulated update.

    Attributes:
        observation: what the server receives, and all that an attack may use.
        victim: the private images behind it, with their timesteps and noise.
    """

    observation: Observation
    victim: Victim

    def judge(self, reconstruction: Reconstruction, success_db: float = 30.0) -> list[Sample]:
        """Compare a reconstruction with the private images, after the best assignment of one to the other.

        Returns:
            One sample per private image. `sample.measured["psnr"]` is its PSNR in dB.

        Raises:
            ValueError: the reconstruction has not the form that an attack should return.
        """
        redrawn = self.observation.public.draws_per_image is not None
        decode = self.observation.network.codec.decode
        return judge([self.victim], [reconstruction], success_db, decode, redrawn=redrawn)


def simulate(
    dataset: str = "photos",
    model: str = "tiny:trained",
    defense: str = "none",
    scenario: Scenario | None = None,
    seed: int = 0,
    include: Sequence[Path | str] = (),
) -> Simulation:
    """Simulate one round of clients and return what the server receives, with the truth behind it.

    The clients train on a GPU if there is one.

    Args:
        dataset: where the private images come from, such as `photos` or `folder:PATH`.
        model: the diffusion model that is trained, such as `tiny:trained` or the path of a diffusers pipeline.
        defense: what the clients do against attacks.
        scenario: how the clients train; None for one image and one step of SGD.
        seed: decides which images, timesteps and noise are drawn.
        include: folders with defenses and data sets of your own.

    Raises:
        UserError: a name or value is unknown, a name stands for several values, or the server would receive several updates.
    """
    configure_torch()
    grid = Grid("one update", (dataset,), (model,), (defense,), ("oracle",), (scenario or Scenario(),), victims=1, seed=seed)
    cells = [
        cell
        for cell in Job(grid, [user_path(folder) for folder in include], device_name("auto")).cells()
        if cell.attack is None
    ]
    if len(cells) > 1:
        raise UserError("a simulation has one data set, one model and one defense; a parameter here has several values")
    cache = Cache()
    check_inputs(cells, cache)
    scene = Scene(cells[0], cache)
    if scene.updates_per_round > 1:
        raise UserError(
            f"the server receives {scene.updates_per_round} updates; stack secure_aggregation, or simulate one client"
        )
    return Simulation(scene.observations[0], scene.victims[0])


@overload
def attack(observation: Observation, name: str, seed: int = 0, include: Sequence[Path | str] = ()) -> Reconstruction: ...


@overload
def attack(
    observation: Sequence[Observation], name: str, seed: int = 0, include: Sequence[Path | str] = ()
) -> list[Reconstruction]: ...


def attack(
    observation: Observation | Sequence[Observation], name: str, seed: int = 0, include: Sequence[Path | str] = ()
) -> Reconstruction | list[Reconstruction]:
    """Rebuild the private images behind one update, or behind several at once.

    Args:
        observation: what the server received. Several observations are searched side by side, which is faster.
        name: an attack with its parameters, such as `dlg[evaluations=300]`.
        seed: decides the attack's random draws.
        include: folders with attacks of your own.

    Returns:
        One reconstruction per observation.

    Raises:
        UserError: there is no such attack, or it needs something that an observation does not grant.
    """
    configure_torch()
    plugin, chosen = Registry([user_path(folder) for folder in include]).create("attack", parse_one(name))
    several = [observation] if isinstance(observation, Observation) else list(observation)
    _check_granted(chosen, plugin.name, several)
    rebuilt = list(chosen.run(several, stream(seed, "attack", name)))
    return rebuilt[0] if isinstance(observation, Observation) else rebuilt


def _check_granted(chosen: Attack, name: str, observations: Sequence[Observation]) -> None:
    """Raise a `UserError` where an attack needs a capability that an observation does not grant."""
    held = frozenset(Capability).intersection(*(observation.grants for observation in observations))
    if missing := sorted(capability.value for capability in chosen.needs - held):
        raise UserError(f"attack '{name}' needs the {' and '.join(missing)}, which the observation does not grant")
