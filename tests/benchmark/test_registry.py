import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from benchmark.base.errors import UserError
from benchmark.registry import Registry, load, registry

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''"""A third party's attack.

Source: nobody
"""
from dataclasses import dataclass
from typing import ClassVar
from benchmark.plugins import Attack
from benchmark.types import Capability


@dataclass(frozen=True)
class Theirs(Attack):
    needs: ClassVar[frozenset[Capability]] = frozenset({Capability.NOISE})
    strength: float = 1.0

    def run(self, observations, generator):
        return []
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "theirs.py").write_text(PLUGIN)
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    return tmp_path


def test_shipped_plugins_are_found():
    found = Registry()
    assert {p.name for p in found.all("attack")} >= {"dlg", "inverting_gradients", "constant_image", "random_guess"}
    assert {p.name for p in found.all("defense")} >= {"none", "dp_sgd", "gradient_pruning", "private_noise_timestep"}
    assert {p.name for p in found.all("dataset")} >= {"photos", "faces", "folder"}


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from benchmark.registry import Registry; "
        "[(p.name, p.summary, p.citation, p.capabilities('needs')) for p in Registry().all('attack')]; "
        "print([m for m in ('torch', 'diffusers', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_included_folder_adds_its_plugins_and_leaves_helpers_alone(folder):
    plugin = Registry([folder]).get("attack", "theirs")
    assert (plugin.summary, plugin.citation) == ("A third party's attack.", "nobody")
    assert plugin.capabilities("needs") == ("noise",)
    assert load(plugin)(strength=2.0).strength == 2.0


def test_an_entry_point_registers_the_same_class(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    point = EntryPoint("renamed", "theirs:Theirs", "gidbench.attacks")
    monkeypatch.setattr(registry, "entry_points", lambda: EntryPoints([point]))
    plugin = Registry().get("attack", "renamed")
    assert plugin.summary == "A third party's attack."
    assert load(plugin).__name__ == "Theirs"


def test_a_changed_source_has_another_hash(folder):
    before = Registry([folder]).get("attack", "theirs").code_hash
    (folder / "theirs.py").write_text(PLUGIN.replace("1.0", "1.5"))
    assert Registry([folder]).get("attack", "theirs").code_hash != before


def test_a_changed_helper_changes_the_plugin(tmp_path, monkeypatch):
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("VALUE = 0\n")
    (package / "theirs.py").write_text(PLUGIN.replace("from typing", "from .helper import VALUE\nfrom typing"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = registry.Plugin("attack", "theirs", package / "theirs.py", "their_package.theirs", "Theirs")
    before = plugin.code_hash
    (package / "helper.py").write_text("VALUE = 1\n")
    again = registry.Plugin("attack", "theirs", package / "theirs.py", "their_package.theirs", "Theirs")
    assert again.code_hash != before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("@dataclass(frozen=True)\n", "", "is not a dataclass"),
        ("def run(", "def rum(", "lacks run"),
    ],
)
def test_an_incomplete_class_is_one_sentence(folder, old, new, words):
    (folder / "theirs.py").write_text(PLUGIN.replace(old, new))
    with pytest.raises(UserError, match=words):
        load(Registry([folder]).get("attack", "theirs"))


def test_a_dotted_base_and_plain_attributes_are_understood(folder):
    source = PLUGIN.replace("from benchmark.plugins import Attack", "from benchmark import plugins")
    source = source.replace("(Attack)", "(plugins.Attack)").replace(": ClassVar[frozenset[Capability]] =", " =")
    (folder / "theirs.py").write_text(source)
    assert Registry([folder]).get("attack", "theirs").capabilities("needs") == ("noise",)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UserError, match="unknown attack 'dgl'; did you mean 'dlg'\\?"):
        Registry().get("attack", "dgl")


def test_two_plugins_of_one_name_are_refused(folder):
    (folder / "dlg.py").write_text(PLUGIN)
    with pytest.raises(UserError, match="two attacks are called 'dlg'"):
        Registry([folder])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def broken(:\n", "cannot read plugin"),
        (PLUGIN + PLUGIN.partition('"""\n')[2].replace("Theirs", "Others"), "one per file"),
    ],
)
def test_a_broken_source_names_its_file(folder, source, words):
    (folder / "theirs.py").write_text(source)
    with pytest.raises(UserError, match=words) as error:
        Registry([folder])
    assert "theirs.py" in str(error.value)


def test_an_import_that_fails_is_one_sentence(folder):
    (folder / "theirs.py").write_text(PLUGIN.replace("from typing", "import not_installed_anywhere\nfrom typing"))
    with pytest.raises(UserError, match="cannot import attack 'theirs'.*not_installed_anywhere"):
        load(Registry([folder]).get("attack", "theirs"))


def test_a_missing_folder_is_one_sentence():
    with pytest.raises(UserError, match="is not a folder"):
        Registry([Path("nowhere")])
