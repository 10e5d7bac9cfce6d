"""Killed and interrupted runs: the same command continues them to the leaderboard of an undisturbed run."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark.cli import main
from benchmark.experiment.store import TEMP_PREFIX, Store

pytestmark = pytest.mark.usefixtures("undrawn_figures")

ROOT = Path(__file__).resolve().parent.parent

GRID = {
    "title": "t",
    "datasets": ["photos"],
    "models": ["tiny"],
    "defenses": ["none", "dp_sgd"],
    "attacks": ["dlg"],
    "victims": 2,
    "evaluations": 2,
}


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


def command(grid, out):
    return ["run", "--grid", str(grid), "--out", str(out), "--display", "plain"]


def start(grid, out, printed=subprocess.DEVNULL):
    words = [sys.executable, "-m", "benchmark", *command(grid, out)]
    return subprocess.Popen(words, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT, text=True)


def finished(out):
    """Return the number of complete cells, without one that is still being written."""
    return sum(not path.parent.name.startswith(TEMP_PREFIX) for path in out.glob("cells/*/record.json"))


def stop_after(process, out, cells, number):
    """Send a signal once `cells` cells are complete, after a delay that differs between the calls."""
    while finished(out) < cells and process.poll() is None:
        time.sleep(0.002)
    time.sleep(0.003 * cells)
    process.send_signal(number)
    return process.communicate(timeout=60)[0]


def test_a_killed_run_resumes_to_the_same_leaderboard(grid, tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(grid, whole)) == 0
    assert "[10/10]" in capsys.readouterr().out

    for cells in (0, 6):
        before = finished(killed)
        stop_after(start(grid, killed), killed, max(cells, before), signal.SIGKILL)
        assert finished(killed) >= before
        assert not (killed / "leaderboard.csv").exists()
    assert main(command(grid, killed)) == 0
    assert "[10/10]" not in capsys.readouterr().out

    tables = [pd.read_csv(out / "leaderboard.csv").drop(columns="seconds_per_victim") for out in (whole, killed)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    cells = Store(whole).plan()["cells"]
    assert cells == Store(killed).plan()["cells"]
    for identity in cells:
        a, b = Store(whole).samples(identity), Store(killed).samples(identity)
        assert all(np.array_equal(x, y) for x, y in zip(a.reconstruction, b.reconstruction, strict=True))


def test_an_interrupted_run_keeps_its_cells_and_says_how_to_continue(grid, tmp_path):
    out = tmp_path / "out"
    process = start(grid, out, subprocess.PIPE)
    printed = stop_after(process, out, 2, signal.SIGINT)
    assert process.returncode == 130
    assert "the same command goes on from there" in printed and "Traceback" not in printed
    assert 2 <= finished(out) < 10
