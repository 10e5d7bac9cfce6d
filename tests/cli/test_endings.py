"""However a run ends early, what is finished is kept, its tables are written, and one sentence says how to go on."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

GRID = {
    "title": "t",
    "datasets": ["photos"],
    "models": ["tiny"],
    "scenarios": [{"timesteps": 200}],
    "defenses": ["none"],
    "attacks": ["dlg"],
    "victims": 1,
    "evaluations": 3,
    "trials": 30,
}


@pytest.fixture
def command(tmp_path):
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(GRID))
    words = ["run", "--grid", str(tmp_path / "g.yaml"), "--out", str(tmp_path / "out"), "--display", "plain"]
    return [sys.executable, "-m", "benchmark", *words]


def cells(out):
    return sum(not path.parent.name.startswith(".") for path in out.glob("cells/*/record.json"))


def wait_for(out, count, process):
    while cells(out) < count and process.poll() is None:
        time.sleep(0.01)


def start(command, **streams):
    return subprocess.Popen(command, cwd=ROOT, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_keeps_cells_writes_tables_and_says_how_to_go_on(command, tmp_path, number, code):  # R3
    out = tmp_path / "out"
    process = start(command)
    wait_for(out, 8, process)  # the four controls of a trial, and some
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.count("\n") == 2 and "Traceback" not in error  # an empty line first
    assert "Interrupted: every finished cell is kept in" in error
    assert "its tables are written; the same command goes on" in error
    assert 8 <= cells(out) < 150
    assert pd.read_csv(out / "leaderboard.csv").n_ok.sum() > 0


def test_a_second_signal_ends_at_once_without_a_traceback(command, tmp_path):  # R3
    process = start(command)
    wait_for(tmp_path / "out", 8, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)  # the tables take longer
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in error and time.monotonic() - began < 2
    assert not (tmp_path / "out" / "leaderboard.csv").exists()


def test_a_run_under_nohup_survives_its_terminal(command, tmp_path):  # R3
    process = start(["nohup", *command, "--trials", "2"])
    wait_for(tmp_path / "out", 2, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_full_output_keeps_cells_and_writes_tables(command, tmp_path):  # T9
    with Path("/dev/full").open("w") as full:
        process = start([*command, "--trials", "3"], stdout=full)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The output is lost (No space left on device): every finished cell is kept" in error
    assert "Traceback" not in error and "Exception ignored" not in error
    assert (tmp_path / "out" / "leaderboard.csv").exists()


def test_a_reader_that_leaves_keeps_cells_and_writes_tables(command, tmp_path):  # T9
    process = start(command)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "The output is lost (Broken pipe)" in error and "Traceback" not in error and "Exception ignored" not in error
    assert (tmp_path / "out" / "leaderboard.csv").exists()


@pytest.mark.parametrize("verb", [["list", "attacks"], ["info"]])
def test_any_verb_on_a_full_output_is_one_sentence(verb):  # T9
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "benchmark", *verb], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write to the output") and done.stderr.count("\n") == 1


def test_a_closed_output_is_written_to_nowhere(command, tmp_path):  # T9
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *command, "--trials", "1"]
    done = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "leaderboard.csv").exists()


def test_letters_that_the_output_lacks_are_replaced(command):  # T8
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, "--trials", "1"], cwd=ROOT, env=environment, capture_output=True, encoding="latin-1", check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Tables and figures" in done.stdout


def test_a_run_that_memory_ends_is_told_apart_from_a_fault(command, tmp_path):  # R4
    """4.5 GB of addresses are what torch's libraries take, and hardly more."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (4_500_000 * 1024,) * 2)

    process = start([*command, "--trials", "2"], preexec_fn=limit)
    printed, error = process.communicate(timeout=100)
    assert process.returncode in (0, 1) and "Traceback" not in error
    assert "failed" not in printed
