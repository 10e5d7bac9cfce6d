"""The functions behind `import gidbench`: one update in memory, or a whole grid in a run directory.

Names of plugins read as on the command line, such as `gradient_pruning[keep=0.1]`. Every function configures torch as the
command line does: one thread for sums unless OMP_NUM_THREADS is set, and no tf32 on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pandas as pd

from benchmark.base.errors import UserError
from benchmark.base.machine import configure_torch, device_name
from benchmark.base.paths import user_path
from benchmark.base.seeds import stream
from benchmark.base.spec import parse_one
from benchmark.evaluation.judge import Sample, judge
from benchmark.experiment.cache import Cache
from benchmark.experiment.display import choose
from benchmark.experiment.grid import Grid, read_grid
from benchmark.experiment.job import Job
from benchmark.experiment.scene import Scene, check_inputs
from benchmark.experiment.session import Session
from benchmark.experiment.store import Store
from benchmark.plugins import Attack
from benchmark.registry import Registry
from benchmark.report import results, tables
from benchmark.report.build import build_report
from benchmark.report.leaderboard import leaderboard
from benchmark.report.strongest import strongest
from benchmark.scenario import Scenario
from benchmark.types import Capability, Observation, Reconstruction, Victim

__all__ = [
    "Grid",
    "Observation",
    "Reconstruction",
    "Run",
    "Scenario",
    "Simulation",
    "UserError",
    "Victim",
    "attack",
    "load",
    "run",
    "simulate",
]


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
        return judge([self.victim], [reconstruction], success_db, self.observation.network.codec.decode)


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read into memory.

    Attributes:
        path: the run directory.
        leaderboard: the rows of `leaderboard.csv`: one per attack under each defense of each scene, then the strongest attacks.
        cells: one row per finished cell.
        images: one row per private image of these cells, with `original` and `reconstruction` as (H, W, C) arrays in [-1, 1].
        notes: what a table must say of these numbers.
    """

    path: Path
    leaderboard: pd.DataFrame
    cells: pd.DataFrame
    images: pd.DataFrame
    notes: Sequence[str]


def simulate(
    dataset: str = "photos",
    model: str = "tiny:trained",
    defense: str = "none",
    scenario: Scenario | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Simulation:
    """Simulate one round of clients and return what the server receives, with the truth behind it.

    Args:
        dataset: where the private images come from, such as `photos` or `folder:PATH`.
        model: the diffusion model that is trained, such as `tiny:trained` or the path of a diffusers pipeline.
        defense: what the clients do against attacks.
        scenario: how the clients train; None for one image and one step of SGD.
        seed: decides which images, timesteps and noise are drawn.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.

    Raises:
        UserError: a name or value is unknown, or the server would receive several updates instead of their sum.
    """
    configure_torch()
    grid = Grid("one update", (dataset,), (model,), (defense,), ("oracle",), (scenario or Scenario(),), victims=1, seed=seed)
    cells = Job(grid, device=device_name(device)).cells()
    cache = Cache()
    check_inputs(cells[:1], cache)
    scene = Scene(cells[0], cache)
    if scene.updates_per_round > 1:
        raise UserError(
            f"the server receives {scene.updates_per_round} updates; stack secure_aggregation, or simulate one client"
        )
    return Simulation(scene.observations[0], scene.victims[0])


@overload
def attack(observation: Observation, name: str, seed: int = 0, include: Sequence[Path] = ()) -> Reconstruction: ...


@overload
def attack(
    observation: Sequence[Observation], name: str, seed: int = 0, include: Sequence[Path] = ()
) -> list[Reconstruction]: ...


def attack(
    observation: Observation | Sequence[Observation], name: str, seed: int = 0, include: Sequence[Path] = ()
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
    plugin, chosen = Registry(include).create("attack", parse_one(name))
    several = [observation] if isinstance(observation, Observation) else list(observation)
    _check_granted(chosen, plugin.name, several)
    rebuilt = list(chosen.run(several, stream(seed, "attack", name)))
    return rebuilt[0] if isinstance(observation, Observation) else rebuilt


def _check_granted(chosen: Attack, name: str, observations: Sequence[Observation]) -> None:
    """Raise a `UserError` where an attack needs a capability that an observation does not grant."""
    held = frozenset(Capability).intersection(*(observation.grants for observation in observations))
    if missing := sorted(capability.value for capability in chosen.needs - held):
        raise UserError(f"attack '{name}' needs the {' and '.join(missing)}, which the observation does not grant")


def run(
    grid: Grid | str,
    out: Path | str | None = None,
    workers: int = 1,
    device: str = "auto",
    include: Sequence[Path] = (),
    timeout: float | None = None,
) -> Run:
    """Run the cells of a grid that have not finished yet, and write the tables and figures.

    With several workers, a script must call this below `if __name__ == "__main__":`, as always with spawned processes.

    Args:
        grid: a grid, or the name or the YAML file of one.
        out: the run directory. None stands for `results/runs/NAME`, if `grid` is a name or a file.
        workers: processes that run cells side by side.
        device: `auto`, `cpu`, `cuda` or `cuda:i`.
        include: folders with plugins of your own.
        timeout: seconds after which a cell is given up.

    Raises:
        UserError: the grid is not valid, an input is missing, or the disk does not take the results.
    """
    configure_torch()
    if out is None and not isinstance(grid, str):
        raise UserError("a grid that is no file has no name of its own: give the run directory as `out`")
    store = Store(user_path(str(out)) if out is not None else Path("results", "runs", Path(str(grid)).stem))
    session = Session(Job(read_grid(grid) if isinstance(grid, str) else grid, include, device_name(device)), store)
    executor = session.executor(workers, timeout)
    cells = session.unfinished()
    session.check(cells)
    with store.writing():
        for _ in session.run(cells, executor, choose("none", cells)):
            pass
        build_report(store)
    return load(store.path)


def load(run_dir: Path | str) -> Run:
    """Read a run directory without changing it.

    Raises:
        UserError: it is no run directory, or no cell in it has finished.
    """
    store = Store(user_path(str(run_dir)))
    found = results.read_results(store)
    if found.cells.empty:
        raise UserError(f"{store.path} has no finished cell yet")
    table = leaderboard(found)
    rows = tables.published(table, strongest(found, table))
    return Run(store.path, rows, found.cells, found.samples, found.notes)
