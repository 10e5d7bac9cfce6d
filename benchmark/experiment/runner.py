"""Runs cells: draws the scene, plays the client, hands its observations to the attack, judges, and keeps the record.

Whatever a cell does, it becomes a row: an exception ends the cell, not the run.
"""

from __future__ import annotations

import copy
import dataclasses
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from benchmark.base.environment import describe
from benchmark.base.errors import first_line
from benchmark.base.events import Step, watching
from benchmark.base.machine import out_of_memory
from benchmark.base.seeds import stream
from benchmark.clients.federation import Round, behind_one, draw_victim, image_counts, known_of, observe, seen_apart
from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.models import Model, build_network, build_schedule
from benchmark.evaluation.judge import Sample, judge, oracle
from benchmark.evaluation.metrics import lpips_missing
from benchmark.experiment.plan import Cell
from benchmark.experiment.store import Record, Status
from benchmark.plugins import Dataset, Picture
from benchmark.types import Capability, Observation, Prior, Privacy, PublicParameters, Reconstruction, Victim


class CellTimeout(BaseException):
    """The cell's time is over. Not an `Exception`, so that an attack's own handlers let it pass."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished cell: its record and its samples."""

    record: Record
    samples: Sequence[Sample]


def run_cell(cell: Cell, timeout: float | None = None) -> Outcome:
    """Run one cell to its row, whatever happens in it.

    Args:
        cell: what to run.
        timeout: seconds after which it is given up, None for no limit; needs the main thread.
    """
    status, reason, seconds = Status.FAILED, "", None
    samples: list[Sample] = []
    steps: list[Step] = []
    claims = _Claims()
    _reset_peak(cell.device)
    try:
        with _time_limit(timeout):
            shown = behind_one(cell.scenario, cell.defense)
            claims = _Claims(known_of(cell.defense, shown), cell.defense.privacy(shown))
            if cell.missing:
                status, reason = Status.SKIPPED, _lacking(cell)
            else:
                victims, observations = scene(cell)
                start = time.perf_counter()
                with watching(steps.append):
                    rebuilt = attack(cell, victims, observations)
                seconds = time.perf_counter() - start
                redrawn = claims.public.draws_per_image is not None
                samples = judge(victims, rebuilt, cell.success_db, len(victims) // cell.victims, redrawn)
                _check_count(rebuilt, len(steps))
                status, reason = _verdict(samples)
    except CellTimeout:
        status, reason = Status.TIMEOUT, f"gave up after {timeout:g} s"
    except Exception as error:
        status = Status.OOM if out_of_memory(error) else Status.FAILED
        reason = _explain(error)
    backends = "+".join(sorted({step.backend for step in steps}))
    return Outcome(_record(cell, status, reason, seconds, claims, backends), samples)


def rehearse(cells: Sequence[Cell]) -> None:
    """Load every model and draw every image that the cells will use, so that what is missing shows before anything runs.

    Raises:
        UserError: a model cannot be loaded, a defense does not fit it or the scenario, or a data set lacks images or holds
            one that cannot be read.
    """
    lpips_missing()  # reads its weights once, before the first cell's time runs
    for model, seed in {(model, cell.seed) for cell in cells for model in (cell.model, cell.model.prior) if model}:
        build_schedule(model)
        _network(model, seed)
    for cell in {(cell.model, cell.keys.defense): cell for cell in cells}.values():
        _prepared(cell)
    for cell in {(cell.model.steps, cell.keys.scenario, cell.keys.defense): cell for cell in cells}.values():
        cell.defense.least_timestep(cell.scenario, cell.model.steps)
    for cell in {(cell.keys.dataset, cell.keys.scenario, cell.trial): cell for cell in cells}.values():
        mean_colour(cell.dataset, _size(cell))
        _pictures(cell, sum(_sizes(cell, _draw(cell))))


def scene(cell: Cell) -> tuple[list[Victim], list[Observation]]:
    """What lies behind each update that the server sees under the cell's defense, and what it sees of it.

    That is one of each round, or one of each client where updates are not aggregated. Images, timesteps and noise depend on
    (dataset, scenario, trial) alone but for what the defense makes of the timesteps, and so does the order in which timesteps
    and noise are granted; the defense's randomness on the defense too. The clients and their defense work on copies: whatever
    they break, the judge's truth and the next cell stay whole.
    """
    schedule = build_schedule(cell.model)
    draw = _draw(cell)
    sizes = _sizes(cell, draw)
    pictures = iter(_pictures(cell, sum(sizes)))
    least = cell.defense.least_timestep(cell.scenario, schedule.steps)
    rounds = [draw_victim([next(pictures) for _ in range(n)], cell.scenario, schedule, draw, least) for n in sizes]
    victims, scenario = seen_apart(rounds, cell.scenario, cell.defense), behind_one(cell.scenario, cell.defense)
    prepared = _prepared(cell)
    network, granted = (copy.deepcopy(prepared).to(cell.device) for _ in range(2))
    schedule = schedule.to(cell.device)
    prior = _prior(cell)
    colour = mean_colour(cell.dataset, _size(cell)).to(cell.device)
    noise, shuffle = stream(cell.seed, "defense", cell.keys.defense, *_axes(cell)), stream(cell.seed, "order", *_axes(cell))
    observations = [
        observe(
            Round(network, schedule, _copy(victim, cell.device), scenario),
            cell.defense,
            colour,
            granted,
            noise,
            shuffle,
            prior,
        )
        for victim in victims
    ]
    return victims, observations


def attack(cell: Cell, victims: Sequence[Victim], observations: Sequence[Observation]) -> list[Reconstruction]:
    """Let the cell's attack rebuild the victims from the observations alone; only the oracle is shown the victims."""
    if cell.attack is None:
        return oracle(victims)
    own = stream(cell.seed, "attack", cell.keys.attack, cell.keys.defense, cell.keys.model, *_axes(cell))
    return cell.attack.run(observations, own)


@lru_cache(maxsize=8)
def mean_colour(dataset: Dataset, size: int) -> Tensor:
    """(C,) the mean over the data set's public images."""
    return torch.stack([picture.image for picture in dataset.public(size)]).mean(dim=(0, 2, 3))


def _prior(cell: Cell) -> Prior | None:
    model = cell.model.prior
    if model is None:
        return None
    network = copy.deepcopy(_network(model, cell.seed)).to(cell.device).requires_grad_(False)
    return Prior(network, build_schedule(model).to(cell.device))


def _prepared(cell: Cell) -> Denoiser:
    return cell.defense.prepare(_network(cell.model, cell.seed), stream(cell.seed, "prepare", cell.keys.defense))


def _network(model: Model, seed: int) -> Denoiser:
    return _built(dataclasses.replace(model, prior=None), seed)  # the weights do not depend on what is granted beside them


@lru_cache(maxsize=4)
def _built(model: Model, seed: int) -> Denoiser:
    return build_network(model, seed)


def _axes(cell: Cell) -> tuple[object, ...]:
    return (cell.keys.dataset, cell.keys.scenario, cell.trial)


def _draw(cell: Cell) -> torch.Generator:
    """The victims' own stream: numbers of images first, then timesteps and noise."""
    return stream(cell.seed, "victims", *_axes(cell))


def _sizes(cell: Cell, draw: torch.Generator) -> list[int]:
    return image_counts(cell.scenario, cell.victims, draw)


def _size(cell: Cell) -> int:
    assert cell.scenario.image_size is not None
    return cell.scenario.image_size


def _pictures(cell: Cell, count: int) -> list[Picture]:
    """The victims' images. They depend on data set and trial alone: a curve over timesteps shows one set of photographs."""
    return cell.dataset.victims(count, _size(cell), stream(cell.seed, "pictures", cell.keys.dataset, cell.trial))


def _copy(victim: Victim, device: str) -> Victim:
    images, timesteps, noise = (t.clone().to(device) for t in (victim.images, victim.timesteps, victim.noise))
    return Victim(images, timesteps, noise, victim.sources)


def _verdict(samples: Sequence[Sample]) -> tuple[Status, str]:
    lost = [sample for sample in samples if sample.status != "ok"]
    if not lost:
        return Status.OK, "; ".join(dict.fromkeys(sample.reason for sample in samples if sample.reason))
    reason = f"{len(lost)} of {len(samples)} images diverged: {lost[0].reason}"
    return (Status.DIVERGED if len(lost) == len(samples) else Status.OK), reason


def _lacking(cell: Cell) -> str:
    private = [capability.value for capability in cell.missing - {Capability.PRIOR}]
    reasons = [f"the {' and '.join(sorted(private))}, which the client keeps private"] if private else []
    reasons += ["a prior, which is not granted"] if Capability.PRIOR in cell.missing else []
    return f"needs {', and '.join(reasons)}"


def _knows(cell: Cell, public: PublicParameters) -> str:
    """What the client grants, with the prior left to its own column."""
    names = {capability: capability.value for capability in (Capability.NOISE, Capability.TIMESTEP)}
    if public.disclosed_noise_error is not None:
        names[Capability.NOISE] = "near noise"
    granted = sorted(name for capability, name in names.items() if capability not in cell.defense.hides)
    return "+".join(["weights", *granted])


def _telling(cell: Cell, public: PublicParameters) -> frozenset[str]:
    """The public parameters that say something new: where the timestep is granted, its range does not."""
    private = Capability.TIMESTEP in cell.defense.hides
    return public.disclosed if private else public.disclosed - {"least_timestep"}


@dataclass(frozen=True)
class _Claims:
    """What a defense says of itself."""

    public: PublicParameters = field(default_factory=PublicParameters)
    privacy: Privacy | None = None


def _record(cell: Cell, status: Status, reason: str, seconds: float | None, claims: _Claims, backends: str) -> Record:
    return Record(
        identity=cell.identity,
        status=status,
        reason=reason,
        config=_config(cell),
        knows=_knows(cell, claims.public),
        adaptive=bool(cell.attack and cell.attack.adapts_to & _telling(cell, claims.public)),
        control=cell.control,
        budget=cell.budget,
        n_total=sum(_sizes(cell, _draw(cell))),
        seconds=seconds,
        peak_mib=_peak(cell.device),
        privacy=dataclasses.asdict(claims.privacy) if claims.privacy else None,
        lpips_missing=lpips_missing(),
        environment={**describe(cell.device), "matching": backends},
    )


def _config(cell: Cell) -> dict[str, object]:
    return {
        "dataset": {"name": cell.dataset_label, "remarks": list(cell.dataset_remarks), **dataclasses.asdict(cell.dataset)},  # type: ignore[call-overload]
        "scenario": cell.scenario.record,
        "summed_clients": behind_one(cell.scenario, cell.defense).clients,
        "model": {
            "name": cell.model.label,
            "state": cell.model.state,
            "prior": cell.model.prior_label,
            "steps": cell.model.steps,
            "prediction_type": build_schedule(cell.model).prediction_type,
            "convention": dataclasses.asdict(cell.model.convention) if cell.model.convention else None,
            "remarks": list(cell.model.remarks),
        },
        "defense": {"name": cell.defense_label, **dataclasses.asdict(cell.defense)},  # type: ignore[call-overload]
        "attack": {"name": cell.attack_label, **(dataclasses.asdict(cell.attack) if cell.attack else {})},  # type: ignore[call-overload]
        "trial": cell.trial,
        "victims": cell.victims,
        "seed": cell.seed,
        "success_db": cell.success_db,
    }


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `CellTimeout` in the running code after `seconds`."""
    if seconds is None:
        yield
        return

    def over(signum: int, frame: object) -> None:
        raise CellTimeout

    before = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_count(rebuilt: Sequence[Reconstruction], counted: int) -> None:
    """An attack may spend evaluations of its own making, but never tell fewer than the engine has counted."""
    told = sum(reconstruction.evaluations for reconstruction in rebuilt)
    if told < counted:
        raise RuntimeError(f"the attack tells of {told} evaluations, and {counted} were counted")


def _explain(error: Exception) -> str:
    """Type, message and place of an error on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
