"""Tests of the command line: exit codes, one sentence per mistake, and the files it writes."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmark.cli import main

pytestmark = pytest.mark.usefixtures("undrawn_figures")  # the module's finished run draws them

ROOT = Path(__file__).resolve().parents[2]

QUICK = {
    "title": "Quick, no evidence of protection",
    "datasets": ["photos"],
    "scenarios": [{"timesteps": 200}],
    "models": ["tiny"],
    "defenses": ["none", "private_noise_timestep"],
    "attacks": ["dlg", "inverting_gradients"],
    "victims": 2,
    "evaluations": 2,
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grids") / "quick.yaml"
    path.write_text(yaml.safe_dump(QUICK))
    return str(path)


@pytest.fixture(scope="module")
def finished(grid, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "quick"
    assert main(["run", "--grid", grid, "--out", str(out), "--display", "none"]) == 0
    return out


def command(*words):
    return subprocess.run([sys.executable, "-m", "benchmark", *words], cwd=ROOT, capture_output=True, text=True)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom benchmark.cli import main\n"
        "try:\n main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'yaml', 'rich') if m in sys.modules])"
    )
    for words in (["--help"], ["run", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("[]") and "usage:" in done.stdout


def test_a_run_leaves_tables_figures_and_a_directory_per_cell(finished):
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.tex"):
        assert (finished / name).stat().st_size > 500
    assert len(list((finished / "figures").glob("*.png"))) == len(list((finished / "figures").glob("*.pdf"))) == 4
    cells = list((finished / "cells").iterdir())
    assert len(cells) == 12
    assert all({"record.json", "samples.parquet"} == {f.name for f in cell.iterdir()} for cell in cells)
    table = pd.read_csv(finished / "leaderboard.csv")
    assert set(table.status) == {"ok", "skipped"}


def test_the_same_command_again_runs_nothing(grid, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("cells/*/record.json")}
    assert main(["run", "--grid", grid, "--out", str(finished), "--display", "plain"]) == 0
    assert "[1/" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("cells/*/record.json")}


def test_force_runs_everything_again_to_the_same_numbers(grid, finished, capsys):
    before = pd.read_csv(finished / "leaderboard.csv").drop(columns="seconds_per_victim")
    assert main(["run", "--grid", grid, "--out", str(finished), "--display", "plain", "--force"]) == 0
    assert "[12/12]" in capsys.readouterr().out
    after = pd.read_csv(finished / "leaderboard.csv").drop(columns="seconds_per_victim")
    pd.testing.assert_frame_equal(before, after)


def test_a_dry_run_prints_cells_and_an_estimate_and_writes_nothing(grid, tmp_path, capsys):
    assert main(["run", "--grid", grid, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "dlg vs none · photos · 16x16 t=200 B=1 · tiny · trial 0: 2 x 2 evaluations" in printed
    assert (
        "inverting_gradients vs private_noise_timestep · photos · 16x16 t=200 B=1 · tiny · trial 0: will be skipped" in printed
    )
    assert "12 of 12 cells to run" in printed
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_every_update_that_is_attacked(tmp_path, capsys):
    """Count one update per client without aggregation, and one per round with it."""
    summed = {**QUICK, "scenarios": [{"timesteps": 200, "clients": 3}], "defenses": ["none", "secure_aggregation"]}
    (tmp_path / "summed.yaml").write_text(yaml.safe_dump({**summed, "attacks": ["dlg"]}))
    assert main(["run", "--grid", str(tmp_path / "summed.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  dlg")]
    assert [line.split(": ")[1] for line in printed] == ["6 x 2 evaluations", "2 x 2 evaluations"]


def test_report_rebuilds_what_was_lost(finished):
    before = (finished / "leaderboard.csv").read_text()
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.tex"):
        (finished / name).unlink()
    assert main(["report", str(finished)]) == 0
    assert (finished / "leaderboard.csv").read_text() == before


def test_compare_prints_a_paired_difference(finished, capsys):
    assert main(["compare", str(finished), "dlg", "constant_image"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "none (" in line)
    frame = pd.read_csv(finished / "leaderboard.csv")
    gain = frame[(frame.attack == "dlg") & (frame.defense == "none")].psnr_gain.item()
    assert f"{gain:+.2f}" in line and "n = 2" in line


def test_a_failing_cell_is_exit_code_one_and_only_failed_tries_it_again(grid, tmp_path, capsys):
    source = (ROOT / "attacks" / "constant_image.py").read_text().replace("control: ClassVar[bool] = True", "")
    (tmp_path / "p").mkdir()
    plugin = tmp_path / "p" / "moody.py"
    body = "        return [Reconstruction(mean_colour_start(observation)"
    assert body in source
    plugin.write_text(source.replace(body, "        import os\n        assert 'CALM' in os.environ, 'too moody'\n" + body))
    words = ["run", "--grid", grid, "--attacks", "moody", "--defenses", "none", "--include", str(plugin.parent)]
    words += ["--out", str(tmp_path / "out"), "--display", "plain"]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "failed (AssertionError: too moody (moody.py:" in printed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALM", "1")
        assert main([*words, "--only-failed"]) == 0
    assert "[1/1] moody vs none" in capsys.readouterr().out


def test_settings_on_the_command_line_are_recorded(grid, tmp_path):
    words = ["run", "--grid", grid, "--attacks", "dlg", "--defenses", "none", "--victims", "1", "--display", "none"]
    assert main([*words, "--set", "attack.dlg.evaluations=3", "--out", str(tmp_path)]) == 0
    records = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/record.json")]
    (dlg,) = [record for record in records if record["config"]["attack"]["name"] == "dlg"]
    assert (dlg["budget"], dlg["config"]["victims"], dlg["status"]) == (3, 1, "ok")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rnu"], "did you mean 'run'"),
        ([], "required: verb"),
        (["run", "--grid", "defalt"], "unknown grid 'defalt'; did you mean 'default'?"),
        (["run", "--atacks", "dlg"], "unknown option '--atacks'; did you mean '--attacks'?"),
        (["run", "--attacks", "dgl"], "unknown attack 'dgl'; did you mean 'dlg'?"),
        (["run", "--attacks", "dlg,"], "an empty name"),
        (["run", "--attacks", ""], "an empty name"),
        (["run", "--attacks", "dlg[evaluations=-3]"], "evaluations must be at least 1, not -3"),
        (["run", "--defenses", "dp_sgt"], "did you mean 'dp_sgd'?"),
        (["run", "--defenses", "gradient_pruning[keep=2]"], "keep must be above 0 and at most 1, not 2"),
        (["run", "--models", "tinny"], "did you mean 'tiny'?"),
        (["run", "--datasets", "folder:/nowhere"], "folder '/nowhere' does not exist"),
        (["run", "--victims", "0"], "victims must be at least 1"),
        (["run", "--victims", "many"], "invalid int value: 'many'"),
        (["run", "--cell-timeout", "-1"], "seconds above 0"),
        (["run", "--device", "gpu"], "unknown device 'gpu'"),
        (["run", "--device", "cuda:99"], "device 'cuda:99' does not exist"),
        (["run", "--display", "plian"], "unknown --display 'plian'; did you mean 'plain'?"),
        (["run", "--set", "nonsense"], "attack.NAME.FIELD=VALUE"),
        (["run", "--include", "/nowhere"], "is not a folder"),
        (["run", "--force", "--only-failed"], "not allowed with"),
        (["list", "atacks"], "did you mean 'attacks'"),
        (["report", "/nowhere"], "no run directory"),
        (["compare", "/nowhere", "a", "b"], "no run directory"),
        (["check", "dgl"], "did you mean 'dlg'"),
        (["check", "folder"], "needs 'path'"),
    ],
)
def test_a_mistake_is_exit_code_two_and_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_an_unknown_attack_in_compare_names_the_nearest(finished, capsys):
    assert main(["compare", str(finished), "dgl", "dlg"]) == 2
    assert "did you mean 'dlg'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("attacks", ["inverting_gradients", "needs: noise", "arXiv 2003.14053"]),
        ("defenses", ["private_noise_timestep", "hides: noise, timestep"]),
        ("datasets", ["photos", "faces", "folder"]),
        ("models", ["tiny", "small", "PATH"]),
        ("grids", ["default", "smoke"]),
    ],
)
def test_list_prints_the_available_names(what, words, capsys):
    assert main(["list", what]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_check_passes_a_good_plugin(capsys):
    assert main(["check", "constant_image"]) == 0
    assert "poisoned truth changes nothing" in capsys.readouterr().out


def test_a_dry_run_estimates_the_cost_of_batches_of_unequal_size(tmp_path, capsys):
    path = tmp_path / "poisson.yaml"
    scenario = {"timesteps": 200, "batch_size": 2, "sampling": "poisson", "sample_rate": 0.2}
    path.write_text(yaml.safe_dump({**QUICK, "scenarios": [scenario], "victims": 4}))
    assert main(["run", "--grid", str(path), "--dry-run"]) == 0
    assert "their attacks take about" in capsys.readouterr().out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_the_allocator_is_set_inside_the_program_unless_the_user_did():
    words = [sys.executable, "-m", "benchmark", "info"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    for extra, expected in (({}, "glibc, keeps freed memory"), ({"MALLOC_TOP_PAD_": "4096"}, "MALLOC_TOP_PAD_=4096")):
        printed = subprocess.run(words, env={**clean, **extra}, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert next(line for line in printed.splitlines() if line.startswith("allocator")).endswith(expected)


def test_info_lists_what_is_installed_and_how_to_get_the_rest(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "device", "threads", "allocator", "LPIPS", "photos", "folder:PATH"):
        assert word in printed


def test_the_module_runs_from_the_shell():
    done = command("list", "attacks")
    assert done.returncode == 0 and "dlg" in done.stdout
    done = command("run", "--attacks", "dgl")
    assert done.returncode == 2 and "Traceback" not in done.stderr
