"""Tests of cell identities: code that makes images changes them, code that measures, displays or describes does not."""

import inspect
import textwrap
from pathlib import Path

import pytest
import torch

from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry, identity
from benchmark.registry.identity import tree_digest

ROOT = Path(inspect.getfile(identity)).parents[1]

GRID = Grid("t", ("photos",), ("tiny",), ("none", "dp_sgd", "clipping+gradient_pruning"), ("dlg", "whitened", "activations"))

SOURCE = textwrap.dedent(
    """
    '''A module.'''
    LIMIT = 3
    '''What LIMIT is.'''

    class Thing:
        '''A thing.'''

        def double(self, x: int) -> str:
            '''Return twice x.'''
            return f"{2 * x}" if x < LIMIT else "many"  # a comment
    """
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'''A module.'''\n", ""),
        ("A thing.", "Another sentence."),
        ("'''Return twice x.'''\n        ", ""),
        ("'''What LIMIT is.'''\n", ""),
        ("  # a comment", ""),
        ("LIMIT = 3\n", "LIMIT = (\n    3\n)\n\n\n"),
        ('"many"', "'many'"),
    ],
)
def test_prose_and_layout_do_not_count(old, new):
    assert old in SOURCE
    assert tree_digest(SOURCE.replace(old, new)) == tree_digest(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("LIMIT = 3", "LIMIT = 4"), ("2 * x", "3 * x"), ("<", "<="), ('"many"', '"more"'), ("double", "twice"), ("= 3", "= 3.0")],
)
def test_every_change_of_code_counts(old, new):
    assert old in SOURCE
    assert tree_digest(SOURCE.replace(old, new)) != tree_digest(SOURCE)


def identities():
    return {(cell.attack_label, cell.defense_label): cell.identity for cell in plan(GRID, Registry(), "cpu")}


@pytest.fixture
def changed(monkeypatch):
    """Return a function that says which cells get another identity where the code of a file is edited."""
    before, digest_of = identities(), identity.digest_of

    def edit(path):
        path = next(place for place in (ROOT / path, ROOT.parent / path) if place.exists())
        with monkeypatch.context() as patch:
            patch.setattr(identity, "digest_of", lambda other: digest_of(other) + "edited" * other.samefile(path))
            after = identities()
        return {key for key in before if after[key] != before[key]}

    return edit


@pytest.mark.parametrize(
    "path",
    [
        "cli/run.py",
        "report/tables.py",
        "report/leaderboard.py",
        "evaluation/metrics.py",
        "evaluation/judge.py",
        "experiment/runner.py",
        "experiment/describe.py",
        "experiment/records.py",
        "experiment/display.py",
        "experiment/expectation.py",
        "report/expected.py",
        "diagnosis.py",
        "outlook.py",
        "base/environment.py",
        "base/errors.py",
        "registry/contract.py",
    ],
)
def test_what_measures_displays_or_describes_leaves_every_cell_valid(changed, path):
    assert changed(path) == set()


@pytest.mark.parametrize(
    "path",
    [
        "experiment/scene.py",
        "clients/federation.py",
        "diffusion/loss.py",
        "base/seeds.py",
        "diffusion/families/unet2d.py",
        "evaluation/assignment.py",
    ],
)
def test_what_makes_the_updates_counts_for_every_cell(changed, path):
    assert changed(path) == set(identities())


@pytest.mark.parametrize(
    ("path", "attacks"),
    [
        ("attacks/_whitening.py", {"whitened"}),
        ("attacks/_inversion.py", {"activations"}),
        ("attacks/dlg.py", {"dlg"}),
        ("matching/engine.py", {"dlg", "whitened", "activations"}),
        ("attacks/constant_image.py", {"constant_image"}),
    ],
)
def test_the_code_of_attacks_counts_for_these_attacks_alone(changed, path, attacks):
    assert {attack for attack, _ in changed(path)} == attacks


@pytest.mark.parametrize(
    ("path", "defenses"),
    [
        ("defenses/dp_sgd.py", {"dp_sgd"}),
        ("clients/privacy.py", {"dp_sgd"}),
        ("defenses/clipping.py", {"clipping+gradient_pruning"}),
        ("clients/stack.py", {"clipping+gradient_pruning"}),
    ],
)
def test_the_code_of_defenses_counts_for_these_defenses_alone(changed, path, defenses):
    assert {defense for _, defense in changed(path)} == defenses


def test_the_precision_of_products_counts(monkeypatch):
    before = identities()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert not set(before.values()) & set(identities().values())


def test_a_plugin_of_ones_own_counts_by_its_code(tmp_path):
    source = Registry().get("attack", "dlg").path.read_text()

    def identity_with(text):
        (tmp_path / "mine.py").write_text(text)
        grid = Grid("t", ("photos",), ("tiny",), ("none",), ("mine",))
        return next(cell.identity for cell in plan(grid, Registry([tmp_path]), "cpu") if cell.attack_label == "mine")

    assert identity_with(source + "\n# a comment\n") == identity_with(source)
    assert identity_with(source + "\nMORE = 1\n") != identity_with(source)


def test_a_file_beside_a_plugin_of_ones_own_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Registry().get("attack", "dlg").path.read_text()
    (tmp_path / "mine.py").write_text(source.replace("import torch\n", "import torch\nimport helper_of_mine\n", 1))
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 0\n")
    before = Registry([tmp_path]).get("attack", "mine").code_hash
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 123\n")
    assert Registry([tmp_path]).get("attack", "mine").code_hash != before
