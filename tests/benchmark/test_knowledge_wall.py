"""Tests that an attack gets what the threat model grants and nothing else."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark.base.seeds import seed, stream
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.experiment.scene import Scene
from benchmark.experiment.store import Status
from benchmark.matching.problem import gaussian_start, start_variables
from benchmark.registry import Plugin, Registry
from benchmark.registry.contract import RULES
from benchmark.types import Capability
from tests.scenes import CACHE, play, run_cell

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = [plugin.name for plugin in Registry().all("attack")]

GRID = Grid(
    title="t",
    datasets=("photos",),
    models=("tiny",),
    defenses=("none", "private_timestep", "private_noise", "private_noise_timestep", "gradient_pruning", "dp_sgd"),
    attacks=("dlg", "inverting_gradients"),
    victims=2,
    evaluations=2,
)


@pytest.fixture(scope="module")
def cells():
    return {(cell.attack_label, cell.defense_label): cell for cell in plan(GRID, Registry(), "cpu")}


IMPORTS = """
import importlib, sys
for name in {attacks}:
    importlib.import_module("benchmark.attacks." + name)
    if loaded := [module for module in sys.modules if module.startswith({forbidden})]:
        sys.exit(name + " loads " + ", ".join(loaded))
"""
"""A program that imports one attack after the other. It names the first that loads a forbidden package."""


def test_importing_every_attack_loads_no_data_set_client_or_judge():
    packages = ("clients", "datasets", "defenses", "evaluation", "experiment")
    code = IMPORTS.format(attacks=ATTACKS, forbidden=tuple(f"benchmark.{package}" for package in packages))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_granted_tensors_share_no_storage_with_the_truth(cells):
    victims, observations = play(cells["dlg", "none"])
    held = {t.untyped_storage().data_ptr() for v in victims for t in (v.images, v.timesteps, v.noise)}
    for o in observations:
        shown = [*o.update.values(), o.timesteps, o.noise, o.mean_colour, *o.network.parameters()]
        assert held.isdisjoint(t.untyped_storage().data_ptr() for t in shown)


@pytest.mark.parametrize(
    ("defense", "hidden"),
    [
        ("none", set()),
        ("private_timestep", {Capability.TIMESTEP}),
        ("private_noise", {Capability.NOISE}),
        ("private_noise_timestep", {Capability.TIMESTEP, Capability.NOISE}),
    ],
)
def test_what_a_defense_hides_is_not_in_the_observation(cells, defense, hidden):
    for observation in play(cells["dlg", defense])[1]:
        assert (observation.timesteps is None) == (Capability.TIMESTEP in hidden)
        assert (observation.noise is None) == (Capability.NOISE in hidden)
        assert observation.grants == {Capability.TIMESTEP, Capability.NOISE} - hidden


def test_an_attack_without_what_it_needs_is_skipped_with_the_reason(cells):
    record = run_cell(cells["inverting_gradients", "private_noise_timestep"]).record
    assert record.status == Status.SKIPPED
    assert record.reason == "needs the noise, which the client keeps private"


def test_victims_are_the_same_under_every_attack_and_defense(cells):
    first, *others = (Scene(cell, CACHE).victims for cell in cells.values())
    others.append(play(cells["dlg", "dp_sgd"])[0])  # after the clients have used them
    for victims in others:
        for a, b in zip(first, victims, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.timesteps, b.timesteps)
            assert torch.equal(a.noise, b.noise)


def test_an_attack_draws_the_same_under_every_defense(cells):
    """Check that the floor is the same in every row of a scene, and that random starts are paired."""
    first, *others = (Scene(cell, CACHE).attack() for (attack, _), cell in cells.items() if attack == "random_guess")
    assert len(others) == len(GRID.defenses) - 1
    for rebuilt in others:
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, rebuilt, strict=True))


def test_victims_differ_between_trials():
    grid = Grid(**{**GRID.__dict__, "trials": 2, "defenses": ("none",), "attacks": ("dlg",)})
    first, second = (Scene(c, CACHE).victims for c in plan(grid, Registry(), "cpu") if c.attack_label == "dlg")
    assert not torch.equal(first[0].images, second[0].images)
    assert not torch.equal(first[0].noise, second[0].noise)


def test_streams_of_victim_defense_and_attack_differ(cells, monkeypatch):
    """Check that each purpose has a stream of its own: no two of them share a seed."""
    opened = {}

    def recording(base, *axes):
        opened[(base, *axes)] = seed(base, *axes)
        return stream(base, *axes)

    monkeypatch.setattr("benchmark.experiment.scene.stream", recording)
    run_cell(cells["dlg", "dp_sgd"])
    assert {axes[1] for axes in opened} == {"victims", "pictures", "prepare", "defense", "order", "augment", "attack"}
    assert len(set(opened.values())) == len(opened) == 7


def test_a_start_does_not_depend_on_the_private_noise(cells):
    """Check that the starts for two victims are equal. The reference code starts the "unknown" noise at the true one."""
    starts = []
    for observation in play(cells["dlg", "private_noise"])[1]:
        draw = stream(0, "s")
        starts.append(start_variables(observation, gaussian_start(observation, draw), draw))
    a, b = starts
    assert set(a) == {"x_0", "eps"}
    assert all(torch.equal(a[name], b[name]) for name in a)


PEEPING = """
\"\"\"Peeps.

Source: ours
\"\"\"
from dataclasses import dataclass
from benchmark.plugins import Attack
from benchmark.types import Reconstruction
{line}

@dataclass(frozen=True)
class Peeping(Attack):
    def run(self, observations, generator):
        return [Reconstruction(o.mean_colour.new_zeros(o.batch_shape), 0) for o in observations]
"""


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from benchmark.datasets.photos import Photos", "benchmark.datasets.photos"),
        ("from ..datasets.photos import Photos", "benchmark.datasets.photos"),
        ("from ..experiment import runner", "benchmark.experiment"),
        ("import benchmark.evaluation.judge", "benchmark.evaluation.judge"),
        ("from benchmark.clients import federation", "benchmark.clients"),
        ("from benchmark.base.seeds import stream", "benchmark.base.seeds"),
        ("from benchmark.diffusion import models", "benchmark.base.config"),
    ],
)
def test_the_contract_catches_an_attack_that_imports_what_knows_the_truth(tmp_path, line, module):
    path = tmp_path / "peeping.py"
    path.write_text(PEEPING.format(line=line))
    plugin = Plugin("attack", "peeping", path, "benchmark.attacks.peeping", "Peeping")
    problem = RULES["attack"]["it imports no data set, no client and no judge"](plugin, None)
    assert problem == f"it imports {module}"


def test_a_prior_is_granted_as_a_frozen_copy_and_named_in_the_record():
    grid = Grid(
        "title", ("photos",), ("tiny:trained", "tiny[prior=tiny:trained]"), ("none",), ("gidm",), victims=1, evaluations=2
    )
    cells = [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label == "gidm"]
    for cell, label in zip(cells, ("self", "tiny:trained"), strict=True):
        (observation,) = play(cell)[1]
        assert Capability.PRIOR in observation.grants
        assert not any(p.requires_grad for p in observation.prior.network.parameters())
        networks = (observation.prior.network, observation.network)
        prior, own = ({p.data_ptr() for p in network.parameters()} for network in networks)
        assert prior.isdisjoint(own)
        record = run_cell(dataclasses.replace(cell, attack=dataclasses.replace(cell.attack, sampler_steps=2))).record
        assert (record.status, record.config["model"]["prior"], record.knows) == (Status.OK, label, "weights+noise+timestep")


def test_without_a_prior_rows_say_what_they_lack():
    grid = Grid("title", ("photos",), ("tiny",), ("near_noise",), ("gidm",), victims=1, evaluations=3)
    records = {cell.attack_label: run_cell(cell).record for cell in plan(grid, Registry(), "cpu")}
    assert records["gidm"].status == Status.OK
    assert records["gidm"].reason == "phase 1 skipped: no prior is granted"
    assert records["gidm"].knows == "weights+near noise+timestep"
    assert records["prior_sample"].status == Status.SKIPPED
    assert records["prior_sample"].reason == "needs a prior, which is not granted"
