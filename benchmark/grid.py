"""A grid: what to run, read from YAML and the command line, checked as a whole before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from benchmark import config
from benchmark.errors import UserError, unknown
from benchmark.scenario import Scenario, label
from benchmark.spec import Spec, expand, expand_stacks

if TYPE_CHECKING:
    from benchmark.diffusion.models import Model
    from benchmark.plugins import Attack, Dataset, Defense
    from benchmark.registry import Registry
    from benchmark.types import Capability

IDENTITY_VERSION = 1
"""Part of every cell's identity; to be raised when the meaning of the identity changes."""

ORACLE = "oracle"
"""The name of the bench's own ceiling among the attacks."""


PARTED = frozenset({"datasets", "models", "defenses", "attacks", "scenarios", "victims", "trials", "evaluations"})
"""Fields of a grid that its parts may have values of their own for."""


@dataclass(frozen=True)
class Grid:
    """The axes, and what all cells share.

    Attributes:
        title: what tables and figures are headed with.
        datasets: names of data sets, `folder:PATH` among them.
        models: presets, shipped checkpoints, directories or hub ids, with their prior in brackets.
        defenses: names, with parameters in brackets, stacked with `+`.
        attacks: names; every control and the oracle join by themselves.
        scenarios: the clients' practices.
        victims: rounds of the scenario's clients per trial.
        trials: draws of victims.
        seed: the root of every random stream.
        evaluations: budget of every attack that has one, else its paper's.
        success_db: PSNR from which an image counts as recovered.
        set: hyper-parameters as `attack.NAME.FIELD: VALUE`.
        parts: where not all axes are to be crossed, the values of `PARTED` that each part has in place of the grid's own.
    """

    title: str
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    scenarios: tuple[Scenario, ...] = (Scenario(),)
    victims: int = 4
    trials: int = 1
    seed: int = 0
    evaluations: int | None = None
    success_db: float = 30.0
    set: Mapping[str, object] = field(default_factory=dict)
    parts: tuple[Mapping[str, object], ...] = ()

    def __post_init__(self) -> None:
        for name in ("victims", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not math.isfinite(self.success_db):
            raise ValueError(f"success_db must be finite, not {self.success_db}")
        if self.evaluations is not None and self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, not {self.evaluations}")
        for axis in ("datasets", "models", "defenses", "attacks", "scenarios"):
            if not getattr(self, axis):
                raise ValueError(f"{axis} is empty")
        for part in self.parts:
            if strange := sorted(set(map(str, part)) - PARTED):
                raise ValueError(f"a part has no '{strange[0]}', only {', '.join(sorted(PARTED))}")

    def each_part(self) -> list[Grid]:
        """The grid as plain ones, each to be crossed: itself where it has no parts.

        Raises:
            UserError: a part's value is none of its field.
        """
        hints = get_type_hints(Grid)
        whole = dataclasses.replace(self, parts=())
        return [
            dataclasses.replace(
                whole, **{key: config.coerce(value, hints[key], f"part {i}: {key}") for key, value in part.items()}
            )
            for i, part in enumerate(self.parts, 1)
        ] or [whole]


@dataclass(frozen=True)
class Keys:
    """What each axis of a cell is, as canonical JSON: the names of its random streams. Of the scenario, what is drawn by it."""

    dataset: str
    scenario: str
    model: str
    prior: str
    defense: str
    attack: str


@dataclass(frozen=True)
class Cell:
    """One cell of the grid, with every axis resolved. An `attack` of None is the oracle.

    `scenario.image_size` is always a number here. Random streams are named by `keys`, which say what an axis is; a label says
    how it was asked for, and two labels may ask for the same.
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

    @property
    def missing(self) -> frozenset[Capability]:
        """What the attack needs and is not granted; such a cell is skipped."""
        from benchmark.types import Capability

        withheld = self.defense.hides | (frozenset() if self.model.prior else {Capability.PRIOR})
        return self.attack.needs & withheld if self.attack else frozenset()

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


def shipped() -> dict[str, str]:
    """Title of every grid inside the package, by name."""
    found = {Path(f.name).stem: f for f in files("benchmark.grids").iterdir() if f.name.endswith(".yaml")}
    return {name: str(yaml.safe_load(found[name].read_text())["title"]) for name in sorted(found)}


def read(name: str) -> Grid:
    """The grid of that name, or in that YAML file.

    Raises:
        UserError: there is none, or it is not a valid grid.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read grid {name}: {error}") from error
    elif name in shipped():
        text = files("benchmark.grids").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise unknown("grid", name, shipped())
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"grid {name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"grid {name} should be a mapping of keys such as 'attacks' and 'defenses'")
    return config.build(Grid, values, f"grid {name}")


def plan(grid: Grid, registry: Registry, device: str) -> list[Cell]:
    """Every cell of the grid, in the order they run: part by part, those of one scene together, controls first.

    Two ways to ask for the same cell give one, under the first one's label.

    Raises:
        UserError: any axis names something unknown, values that do not go together, or two parts ask for one row of the tables
            with different budgets or victims.
    """
    planners = [_Planner(part, registry, device) for part in grid.each_part()]
    cells = [planner.cell(*axes) for planner in planners for axes in itertools.product(*planner.axes())]
    chosen: dict[str, Cell] = {}
    rows: dict[object, Cell] = {}
    for cell in cells:
        chosen.setdefault(cell.identity, cell)
        row = rows.setdefault((cell.name, cell.keys.scenario), cell)
        if (row.budget, row.victims) != (cell.budget, cell.victims):
            raise UserError(f"two parts of the grid ask for {cell.name} with different budgets or numbers of victims")
    return list(chosen.values())


@dataclass(frozen=True)
class _Choice:
    """A resolved plugin: its label in tables, the object, what it is, and what of its source and data can change an answer."""

    label: str
    value: Any
    key: Mapping[str, object]
    sources: Mapping[str, object]


class _Planner:
    def __init__(self, grid: Grid, registry: Registry, device: str) -> None:
        import torch

        from benchmark.registry import engine_hash

        self.grid, self.registry, self.device = grid, registry, device
        self.engine = engine_hash()
        # Sums round differently when they are split over another number of threads.
        self.hardware = [device.partition(":")[0], torch.get_num_threads() if device == "cpu" else None]
        self.settings = self._settings()
        self._weights = cache(_weights_key)  # reads whole files: once for a model, not for every cell

    def axes(self) -> list[Sequence[Any]]:
        from benchmark.diffusion.models import resolve

        controls = [plugin.name for plugin in self.registry.all("attack") if plugin.control]
        attacks = dict.fromkeys([*controls, *self.grid.attacks])
        attacks.pop(ORACLE, None)
        models = [resolve(spec) for spec in expand(self.grid.models)]
        datasets = [self._choice("dataset", spec) for spec in expand(self.grid.datasets)]
        defenses = [self._defense(specs) for specs in expand_stacks(self.grid.defenses)]
        oracle = _Choice(ORACLE, None, {"name": ORACLE}, {})
        chosen = [oracle, *(self._choice("attack", spec) for spec in expand(attacks))]
        return [datasets, self.grid.scenarios, models, range(self.grid.trials), defenses, chosen]

    def cell(self, dataset: _Choice, scenario: Scenario, model: Model, trial: int, defense: _Choice, attack: _Choice) -> Cell:
        scenario = self._fit(scenario, model)
        for trained in (model, *([model.prior] if model.prior else [])):
            _refuse_if_seen(trained, dataset)
        keys = Keys(
            dataset=_canonical(dataset.key),
            scenario=_canonical(scenario.drawn),
            model=_canonical(self._weights(model)),
            prior=_canonical(self._weights(model.prior) if model.prior else None),
            defense=_canonical(defense.key),
            attack=_canonical(attack.key),
        )
        everything = {
            "version": IDENTITY_VERSION,
            "engine": self.engine,
            "hardware": self.hardware,
            "keys": dataclasses.asdict(keys),
            "scenario": dataclasses.asdict(scenario),
            "sources": [choice.sources for choice in (dataset, defense, attack)],
            "trial": trial,
            "victims": self.grid.victims,
            "seed": self.grid.seed,
            "success_db": self.grid.success_db,
        }
        return Cell(
            dataset_label=dataset.label,
            defense_label=defense.label,
            attack_label=attack.label,
            scenario=scenario,
            model=model,
            dataset=dataset.value,
            defense=defense.value,
            attack=attack.value,
            trial=trial,
            victims=self.grid.victims,
            seed=self.grid.seed,
            success_db=self.grid.success_db,
            device=self.device,
            identity=hashlib.blake2b(_canonical(everything).encode(), digest_size=16).hexdigest(),
            keys=keys,
        )

    def _fit(self, scenario: Scenario, model: Model) -> Scenario:
        """The scenario with an image size and timesteps that the model has, and without what has no effect."""
        size = scenario.image_size or model.image_size
        if size % model.stride:
            raise UserError(f"model '{model.label}' takes images whose side is a multiple of {model.stride}, not {size}x{size}")
        steps = model.steps
        if any(not 0 <= t < steps for t in scenario.fixed_timesteps):
            raise UserError(
                f"the scenario's timesteps ({scenario.timestep_label}) must be from 0 to {steps - 1} for model '{model.label}'"
            )
        fixed = scenario.fixed_timesteps
        timesteps = fixed[0] if len(set(fixed)) == 1 else scenario.timesteps
        lr = scenario.local_lr if scenario.local_steps > 1 else Scenario.local_lr
        return dataclasses.replace(scenario, image_size=size, timesteps=timesteps, local_lr=lr)

    def _choice(self, kind: str, spec: Spec) -> _Choice:
        from benchmark.registry import load

        name = spec.name.partition(":")[0]
        settings: dict[str, object] = dict(self.settings.get((kind, name), {}))
        if kind == "attack" and self.grid.evaluations is not None:
            fields = config.field_names(load(self.registry.get(kind, name)))
            settings = {"evaluations": self.grid.evaluations, **settings} if "evaluations" in fields else settings
        plugin, value = self.registry.create(kind, spec, settings)
        sources = {"source": plugin.source_hash, "data": value.fingerprint() if kind == "dataset" else ""}
        return _Choice(str(spec), value, {"name": name, "fields": dataclasses.asdict(value)}, sources)

    def _defense(self, specs: Sequence[Spec]) -> _Choice:
        """One defense, or several stacked."""
        from benchmark.stack import stack

        chosen = [self._choice("defense", spec) for spec in specs]
        if len(chosen) == 1:
            return chosen[0]
        names = [str(choice.key["name"]) for choice in chosen]
        label = "+".join(choice.label for choice in chosen)
        if len(set(names)) < len(names):
            raise UserError(f"defense '{label}' names one defense twice")
        value = stack(dict(zip(names, (choice.value for choice in chosen), strict=True)))
        return _Choice(label, value, {"stack": [c.key for c in chosen]}, {"stack": [c.sources for c in chosen]})

    def _settings(self) -> dict[tuple[str, str], dict[str, object]]:
        """Hyper-parameters of `set`, by kind and name of the plugin."""
        from benchmark.registry import load

        settings: dict[tuple[str, str], dict[str, object]] = {}
        for key, value in self.grid.set.items():
            kind, _, rest = str(key).partition(".")
            name, _, field_name = rest.rpartition(".")
            if kind not in ("attack", "defense", "dataset") or not name or not field_name:
                raise UserError(f"'{key}' should read like attack.NAME.FIELD")
            known = config.field_names(load(self.registry.get(kind, name)))
            if field_name not in known:
                raise unknown(f"field of {kind} '{name}'", field_name, known)
            settings.setdefault((kind, name), {})[field_name] = value
        return settings


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _refuse_if_seen(model: Model, dataset: _Choice) -> None:
    """A model trained on the public images of a data set saw no victim only as long as its files, and so its split, stay."""
    name = dataset.label.partition(":")[0].partition("[")[0]
    for trained_on, fingerprint in model.trained_on():
        if trained_on.partition(":")[0].partition("[")[0] == name and fingerprint != dataset.sources["data"]:
            raise UserError(
                f"model '{model.label}' was trained on public images of '{trained_on}' as its files were then, and those of "
                f"'{dataset.label}' are others: a victim here may have been public there; train it again on these files"
            )


def _weights_key(model: Model) -> Mapping[str, object]:
    if model.directory is None:
        assert model.convention is not None
        return {"preset": model.preset, "convention": dataclasses.asdict(model.convention)}
    digest = hashlib.blake2b(digest_size=16)
    for path in (*sorted(model.directory.iterdir()), model.scheduler):
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return {
        "files": digest.hexdigest(),
        "convention": dataclasses.asdict(model.convention) if model.convention else None,
    }
