"""Tests that the plugin folders are imported only under `benchmark`, so they never hide Hugging Face's `datasets`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import importlib.util
import benchmark
for name in ("attacks", "defenses", "datasets"):
    spec = importlib.util.find_spec(name)
    assert spec is None or "site-packages" in str(spec.origin), (name, spec)
import benchmark.attacks.constant_image, benchmark.defenses.none, benchmark.datasets.faces
import gidbench
for name in ("attacks", "defenses", "datasets"):
    spec = importlib.util.find_spec(name)
    assert spec is None or "site-packages" in str(spec.origin), (name, spec)
print("fine")
"""

SPAWN = """
import multiprocessing

def probe(_):
    import importlib.util
    import benchmark
    import benchmark.datasets.faces
    spec = importlib.util.find_spec("datasets")
    return spec is None or "site-packages" in str(spec.origin)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(probe, [0]) == [True]
    print("fine")
"""


def run(*words, cwd=ROOT):
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_script_at_the_root_sees_no_datasets_of_ours():
    assert "fine" in run("-c", PROBE)


def test_a_module_at_the_root_sees_none_either(tmp_path):
    code = "import runpy, sys; sys.argv = ['benchmark', 'list', 'grids']\n"
    code += "try:\n runpy.run_module('benchmark', run_name='__main__')\nexcept SystemExit: pass\n" + PROBE
    assert "fine" in run("-c", code)


def test_a_spawned_worker_sees_none_either(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + SPAWN)
    assert "fine" in run(str(script))


def test_pytest_at_the_root_sees_none_either(tmp_path):
    test = tmp_path / "test_probe.py"
    test.write_text("def test_probe():\n" + "".join(f"    {line}\n" for line in PROBE.strip().splitlines()))
    assert "1 passed" in run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", "pyproject.toml", str(test)
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that no build/ is left in the checkout, with the installed build tools."""
    import shutil

    copy, out = tmp_path_factory.mktemp("copy") / "src", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "results", "build", "*.egg-info", "__pycache__"))
    run("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), ".", cwd=copy)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_two_top_level_names_and_every_plugin(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"benchmark", "gidbench"}
    for room in ("attacks", "defenses", "datasets"):
        for path in (ROOT / room).glob("*.py"):
            assert f"benchmark/{room}/{path.name}" in names
    assert "benchmark/grids/default.yaml" in names and {"benchmark/py.typed", "gidbench/py.typed"} <= set(names)
    for preset in ("tiny", "small"):
        assert f"benchmark/checkpoints/{preset}/unet/diffusion_pytorch_model.safetensors" in names


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n" + PROBE
    code += "from benchmark.registry import Registry; from benchmark.experiment.grid import read_grid\n"
    code += "assert Registry().get('attack', 'dlg').path.is_relative_to(sys.path[0]); read_grid('smoke')\n"
    code += "from benchmark.diffusion.catalogue import packaged_checkpoints\n"
    code += "assert packaged_checkpoints()['small:trained'].is_relative_to(sys.path[0])\n"
    assert "fine" in run("-c", code, cwd=tmp_path)
