"""A run that is killed, at whatever moment, resumes to the leaderboard that it would have had."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark.store import ASIDE, Store

ROOT = Path(__file__).resolve().parent.parent

GRID = {
    "title": "t",
    "datasets": ["photos"],
    "models": ["tiny"],
    "defenses": ["none", "dp_sgd"],
    "attacks": ["dlg", "inverting_gradients"],
    "victims": 2,
    "evaluations": 4,
}


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return path


def start(grid, out):
    words = [sys.executable, "-m", "benchmark", "run", "--grid", str(grid), "--out", str(out), "--display", "plain"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(out):
    """Cells in their place; one that is still being written aside is not."""
    return sum(not path.parent.name.startswith(ASIDE) for path in out.glob("cells/*/record.json"))


def stop_after(process, out, cells, with_signal):
    """Send the signal once so many cells are there; a little later each time, so that it hits different moments."""
    while finished(out) < cells and process.poll() is None:
        time.sleep(0.002)
    time.sleep(0.003 * cells)
    process.send_signal(with_signal)
    return process.communicate(timeout=60)[0]


def test_a_killed_run_resumes_to_the_same_leaderboard(grid, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = start(grid, whole).communicate(timeout=120)[0]
    assert "[12/12]" in printed

    for cells in (0, 3, 8):
        before = finished(killed)
        stop_after(start(grid, killed), killed, max(cells, before), signal.SIGKILL)
        assert finished(killed) >= before
        assert not (killed / "leaderboard.csv").exists()
    done = start(grid, killed)
    resumed = done.communicate(timeout=120)[0]
    assert done.returncode == 0 and "[12/12]" not in resumed

    tables = [pd.read_csv(out / "leaderboard.csv").drop(columns="seconds_per_victim") for out in (whole, killed)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    cells = Store(whole).plan()["cells"]
    assert cells == Store(killed).plan()["cells"]
    for identity in cells:
        a, b = Store(whole).samples(identity), Store(killed).samples(identity)
        assert all(np.array_equal(x, y) for x, y in zip(a.reconstruction, b.reconstruction, strict=True))


def test_an_interrupted_run_keeps_its_cells_and_says_how_to_go_on(grid, tmp_path):
    out = tmp_path / "out"
    process = start(grid, out)
    printed = stop_after(process, out, 2, signal.SIGINT)
    assert process.returncode == 130
    assert "the same command goes on from there" in printed and "Traceback" not in printed
    assert 2 <= finished(out) < 10
