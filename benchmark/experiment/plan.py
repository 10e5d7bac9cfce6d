"""Plan the cells of a grid. Every axis is resolved, and every contradiction is found, before anything runs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmark.base import config
from benchmark.base.errors import UserError, unknown
from benchmark.base.paths import printable
from benchmark.base.spec import Spec, expand, expand_stacks
from benchmark.experiment.cell import Cell, Keys
from benchmark.experiment.grid import ORACLE, Grid
from benchmark.registry.identity import module_hash
from benchmark.scenario import Scenario

if TYPE_CHECKING:
    from benchmark.diffusion.models import Model
    from benchmark.plugins import Contents, Dataset
    from benchmark.registry import Registry

IDENTITY_VERSION = 2
"""Part of the identity of every cell. Raise it when the meaning of the identity changes."""

MAX_CELLS = 100_000
"""The most cells of a grid. More are a mistake and would fill a disk."""

MAX_IMAGES = 10_000
"""The most private images of a grid. More would take minutes to draw before anything runs."""

COPIES_PER_IMAGE = 4
"""Copies of the images of a cell in memory at once: pictures, victims, observations, reconstructions."""


def plan(grid: Grid, registry: Registry, device: str) -> list[Cell]:
    """Return every cell of the grid in the order in which they run: part by part, scene by scene, controls first.

    A cell that is asked for in two ways appears once, under the first label.

    Raises:
        UserError: any axis names something unknown, values that do not go together, more than `MAX_CELLS` cells or
            `MAX_IMAGES` images, or two parts ask for one row of the tables with different budgets or victims.
    """
    parts = grid.each_part()
    if grid.parts:
        _Planner(dataclasses.replace(grid, parts=()), registry, device).check()
    planners = [_Planner(part, registry, device) for part in parts]
    every = [planner.axes() for planner in planners]
    if (count := sum(math.prod(map(len, axes)) for axes in every)) > MAX_CELLS:
        raise UserError(f"the grid has {count} cells; at most {MAX_CELLS} can be run at once")
    cells = [planner.cell(*axes) for planner, own in zip(planners, every, strict=True) for axes in itertools.product(*own)]
    chosen: dict[str, Cell] = {}
    rows: dict[object, Cell] = {}
    for cell in cells:
        chosen.setdefault(cell.identity, cell)
        row = rows.setdefault((cell.name, cell.keys.scenario), cell)
        if (row.budget, row.victims) != (cell.budget, cell.victims):
            raise UserError(f"two parts of the grid ask for {cell.name} with different budgets or numbers of victims")
    drawn = {(cell.keys.dataset, cell.keys.scenario, cell.trial): cell.victims * cell.scenario.images for cell in cells}
    if (count := sum(drawn.values())) > MAX_IMAGES:
        raise UserError(f"the grid draws {count} private images; at most {MAX_IMAGES} can be drawn")
    return list(chosen.values())


@dataclass(frozen=True)
class _Choice:
    """A resolved plugin.

    Attributes:
        label: its name in tables.
        value: the object.
        key: its name and parameters, which name the random streams.
        sources: hashes of the code and data that can change a result.
        remarks: what the user should know about a data set.
        contents: the images of the two parts of a data set, None if it cannot list them.
    """

    label: str
    value: Any
    key: Mapping[str, object]
    sources: Mapping[str, object]
    remarks: tuple[str, ...] = ()
    contents: Contents | None = None


class _Planner:
    def __init__(self, grid: Grid, registry: Registry, device: str) -> None:
        import torch

        from benchmark.base.machine import precision

        self.grid, self.registry, self.device = grid, registry, device
        self._code = cache(module_hash)  # follows all imports: once for a module, not for every cell
        # Sums round differently when they are split over another number of threads.
        threads = torch.get_num_threads() if device == "cpu" else None
        self.hardware = {"device": device.partition(":")[0], "threads": threads, **precision()}
        self.settings = self._settings()
        self._compared: set[tuple[str, str]] = set()  # models and data sets that share no victim
        self._weights = cache(_weights_key)  # reads whole files: once for a model, not for every cell

    def axes(self) -> list[Sequence[Any]]:
        datasets = [self._dataset(spec) for spec in expand(self.grid.datasets)]
        return [datasets, self.grid.scenarios, self._models(), range(self.grid.trials), self._defenses(), self._attacks()]

    def check(self) -> None:
        """Refuse a wrong value in an axis, even if every part of the grid overrides that axis."""
        for axis in (self._models, self._defenses, self._attacks):
            axis()

    def _models(self) -> list[Model]:
        from benchmark.diffusion.models import resolve_model

        return [resolve_model(spec) for spec in expand(self.grid.models)]

    def _defenses(self) -> list[_Choice]:
        return [self._defense(specs) for specs in expand_stacks(self.grid.defenses)]

    def _attacks(self) -> list[_Choice]:
        controls = [plugin.name for plugin in self.registry.all("attack") if plugin.control]
        attacks = dict.fromkeys([*controls, *self.grid.attacks])
        attacks.pop(ORACLE, None)
        oracle = _Choice(ORACLE, None, {"name": ORACLE}, {})
        return [oracle, *(self._choice("attack", spec) for spec in expand(attacks))]

    def cell(self, dataset: _Choice, scenario: Scenario, model: Model, trial: int, defense: _Choice, attack: _Choice) -> Cell:
        scenario = self._fit(scenario, model, defense.value.uses_lr)
        self._check_size(scenario)
        for trained in (model, *([model.prior] if model.prior else [])):
            if (trained.label, dataset.label) not in self._compared:
                _refuse_trained_on_victims(trained, dataset)
                self._compared.add((trained.label, dataset.label))
        keys = Keys(
            dataset=_canonical(dataset.key),
            scenario=_canonical(scenario.draw_fields),
            model=_canonical(self._weights(model)),
            prior=_canonical(self._weights(model.prior) if model.prior else None),
            defense=_canonical(defense.key),
            attack=_canonical(attack.key),
        )
        everything = {
            "version": IDENTITY_VERSION,
            "scene": self._code("benchmark.experiment.scene"),
            "assignment": self._code("benchmark.evaluation.assignment"),
            "hardware": self.hardware,
            "keys": dataclasses.asdict(keys),
            "scenario": dataclasses.asdict(scenario),
            "families": [self._code(type(one.family).__module__) for one in (model, model.prior) if one],
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
            dataset_remarks=dataset.remarks,
        )

    def _check_size(self, scenario: Scenario) -> None:
        """Refuse a cell if its images alone exceed the memory of this machine."""
        count, size = self.grid.victims * scenario.images, scenario.image_size or 0
        needed = COPIES_PER_IMAGE * count * 3 * size**2 * 4
        if needed > (total := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise UserError(
                f"the {count} images of {size}x{size} pixels of a cell need {needed / 2**30:.0f} GiB, "
                f"and this machine has {total / 2**30:.0f} GiB"
            )

    def _fit(self, scenario: Scenario, model: Model, uses_lr: bool) -> Scenario:
        """Return the scenario with an image size and timesteps that fit the model. Drop settings that have no effect."""
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
        return dataclasses.replace(scenario.effective(uses_lr), image_size=size, timesteps=timesteps)

    def _choice(self, kind: str, spec: Spec) -> _Choice:
        from benchmark.registry import load

        name = spec.name.partition(":")[0]
        settings: dict[str, object] = dict(self.settings.get((kind, name), {}))
        if kind == "attack" and self.grid.evaluations is not None:
            fields = config.field_names(load(self.registry.get(kind, name)))
            settings = {"evaluations": self.grid.evaluations, **settings} if "evaluations" in fields else settings
        plugin, value = self.registry.create(kind, spec, settings)
        sources = {"code": plugin.code_hash, "data": ""}
        return _Choice(printable(str(spec)), value, {"name": name, "fields": dataclasses.asdict(value)}, sources)

    def _dataset(self, spec: Spec) -> _Choice:
        """Resolve a data set. Its key, which names its random streams, holds a hash of its images but not their location."""
        choice = self._choice("dataset", spec)
        dataset: Dataset = choice.value
        images = dataset.fingerprint()
        fields = {name: value for name, value in dataclasses.asdict(choice.value).items() if name not in dataset.location}
        key = {"name": choice.key["name"], "fields": fields, **({"images": images} if images else {})}
        sources = {**choice.sources, "data": images}
        return _Choice(choice.label, dataset, key, sources, dataset.remarks(), dataset.contents())

    def _defense(self, specs: Sequence[Spec]) -> _Choice:
        """Resolve one defense or a stack of several."""
        from benchmark.clients.stack import stack

        chosen = [self._choice("defense", spec) for spec in specs]
        if len(chosen) == 1:
            return chosen[0]
        names = [str(choice.key["name"]) for choice in chosen]
        label = "+".join(choice.label for choice in chosen)
        if len(set(names)) < len(names):
            raise UserError(f"defense '{label}' names one defense twice")
        value = stack(dict(zip(names, (choice.value for choice in chosen), strict=True)))
        return _Choice(
            label,
            value,
            {"stack": [c.key for c in chosen]},
            {"stack": [c.sources for c in chosen], "code": self._code("benchmark.clients.stack")},
        )

    def _settings(self) -> dict[tuple[str, str], dict[str, object]]:
        """Return the hyper-parameters of `set` by kind and name of the plugin."""
        from benchmark.registry import load

        settings: dict[tuple[str, str], dict[str, object]] = {}
        for key, value in self.grid.set.items():
            kind, _, rest = str(key).partition(".")
            name, _, field_name = rest.rpartition(".")
            if kind not in ("attack", "defense", "dataset") or not name or not field_name:
                raise UserError(f"'{key}' should read like attack.NAME.FIELD")
            cls = load(self.registry.get(kind, name))
            known = config.field_names(cls)
            if field_name not in known:
                raise unknown(f"field of {kind} '{name}'", field_name, known)
            config.check_value(cls, field_name, value, f"'{key}'")
            settings.setdefault((kind, name), {})[field_name] = value
        return settings


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _refuse_trained_on_victims(model: Model, dataset: _Choice) -> None:
    """Refuse a model that was trained on images which are victims here.

    If the card of the model lists hashes of its training images, they are compared with the victims. Otherwise the model must
    have been trained on the public images of the same files: a change of the files changes which images are public.
    """
    name = dataset.label.partition(":")[0].partition("[")[0]
    for training in model.trained_on():
        if training.contents and dataset.contents:
            if shared := training.contents & dataset.contents.private:
                victims = len(dataset.contents.private)
                raise UserError(
                    f"model '{model.label}' was trained on {len(shared)} of the {victims} images that are victims in "
                    f"'{dataset.label}' (public images of '{training.dataset}'); train it again on other images"
                )
        elif training.dataset.partition(":")[0].partition("[")[0] == name and training.files != dataset.sources["data"]:
            raise UserError(
                f"the files of '{dataset.label}' have changed since model '{model.label}' was trained on "
                f"'{training.dataset}'; the model may have seen a victim, so train it again on these files"
            )


def _weights_key(model: Model) -> Mapping[str, object]:
    if model.checkpoint is None:
        assert model.convention is not None
        return {"preset": model.preset, "convention": dataclasses.asdict(model.convention)}
    digest = hashlib.blake2b(digest_size=16)
    for path in model.files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return {
        "files": digest.hexdigest(),
        "convention": dataclasses.asdict(model.convention) if model.convention else None,
    }
