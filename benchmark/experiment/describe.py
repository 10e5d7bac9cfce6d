"""Construction of the record of a cell: its configuration, what the attack was granted, and how the cell ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmark.base.environment import describe
from benchmark.evaluation.metrics import lpips_missing
from benchmark.experiment.cell import Cell
from benchmark.experiment.records import Record, Status
from benchmark.experiment.scene import Scene
from benchmark.outlook import Outlook
from benchmark.types import Capability, Privacy, PublicParameters


@dataclass(frozen=True)
class Claims:
    """The claims of a defense about itself. They stay empty if the defense fails to state them.

    Attributes:
        public: the public parameters of the defense.
        privacy: the defense's privacy guarantee, None if it has none.
    """

    public: PublicParameters = field(default_factory=PublicParameters)
    privacy: Privacy | None = None


@dataclass(frozen=True)
class Ending:
    """How a cell ended.

    Attributes:
        status: the status of the cell.
        reason: why the cell has this status; for `ok` a note, or empty.
        seconds: run time of the attack, None if it did not finish.
        backends: sorted names of the methods by which the matching engine computed gradients.
        peak_mib: peak memory of tensors on the GPU in MiB while the cell ran, None on a CPU.
        expected: what the attack was expected to reach before it ran; None if that was not asked.
    """

    status: Status
    reason: str
    seconds: float | None = None
    backends: Sequence[str] = ()
    peak_mib: float | None = None
    expected: Outlook | None = None


def record_of(scene: Scene, claims: Claims, ending: Ending) -> Record:
    """Return the record of a finished cell."""
    cell = scene.cell
    return Record(
        identity=cell.identity,
        status=ending.status,
        reason=ending.reason,
        config=_config(scene),
        knows=_granted_knowledge(cell, claims.public),
        adaptive=bool(
            cell.attack and cell.attack.adapts_to & claims.public.informative(Capability.TIMESTEP in cell.defense.hides)
        ),
        control=cell.control,
        budget=cell.budget,
        n_total=scene.image_count,
        seconds=ending.seconds,
        peak_mib=ending.peak_mib,
        privacy=dataclasses.asdict(claims.privacy) if claims.privacy else None,
        lpips_missing=lpips_missing(),
        environment={**describe(cell.device), "matching": "+".join(ending.backends)},
        expected=str(ending.expected.prediction) if ending.expected else None,
        expected_reason=ending.expected.reason if ending.expected else "",
    )


def why_skipped(cell: Cell) -> str:
    """Return why the attack cannot run, by naming what it needs but is not granted."""
    private = [capability.value for capability in cell.missing - {Capability.PRIOR}]
    reasons = [f"the {' and '.join(sorted(private))}, which the client keeps private"] if private else []
    reasons += ["a prior, which is not granted"] if Capability.PRIOR in cell.missing else []
    return f"needs {', and '.join(reasons)}"


def _granted_knowledge(cell: Cell, public: PublicParameters) -> str:
    """Return what the attack is granted, except for the prior, which has its own column in the tables."""
    names = {capability: capability.value for capability in (Capability.NOISE, Capability.TIMESTEP)}
    if public.disclosed_noise_error is not None:
        names[Capability.NOISE] = "near noise"
    granted = sorted(name for capability, name in names.items() if capability not in cell.defense.hides)
    return "+".join(["weights", *granted])


def _config(scene: Scene) -> dict[str, object]:
    cell = scene.cell
    return {
        "dataset": {"name": cell.dataset_label, "remarks": list(cell.dataset_remarks), **dataclasses.asdict(cell.dataset)},  # type: ignore[call-overload]
        "scenario": cell.scenario.record,
        "summed_clients": scene.practice.clients,
        "model": {
            "name": cell.model.label,
            "state": cell.model.state,
            "prior": cell.model.prior_label,
            "steps": cell.model.steps,
            "prediction_type": scene.schedule.prediction_type,
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
