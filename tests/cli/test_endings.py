"""Runs that end early: finished cells are kept, the tables are written, and one sentence says how to continue."""

import io
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmark.cli import main

pytestmark = pytest.mark.usefixtures("undrawn_figures")

ROOT = Path(__file__).resolve().parents[2]

GRID = {
    "title": "t",
    "datasets": ["photos"],
    "models": ["tiny"],
    "scenarios": [{"timesteps": 200}],
    "defenses": ["none"],
    "attacks": ["constant_image"],
    "victims": 1,
}

WAITS = """
import sys, time
from benchmark.base.interrupts import Interrupted, record_interrupts
with record_interrupts(patient=False):
    try:
        print("ready", flush=True)
        time.sleep(30)
    except Interrupted as error:
        print(error.number, flush=True)
        time.sleep(30)
"""
"""A program that stops its work at the first signal and then takes long to end, like a run that writes its tables."""


@pytest.fixture
def words(tmp_path):
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(GRID))
    return ["run", "--grid", str(tmp_path / "g.yaml"), "--out", str(tmp_path / "out"), "--display", "plain"]


def cells(out):
    return sum(not path.parent.name.startswith(".") for path in out.glob("cells/*/record.json"))


def start(command, **more):
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_signal_keeps_cells_writes_tables_and_says_how_to_go_on(words, tmp_path):  # R3
    out = tmp_path / "out"
    attacked = ["--attacks", "dlg", "--set", "attack.dlg.evaluations=100000"]
    process = start([sys.executable, "-m", "benchmark", *words, *attacked])
    while cells(out) < 4 and process.poll() is None:  # the controls
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 143
    assert error.count("\n") == 2 and "Traceback" not in error  # an empty line first
    assert "Interrupted: every finished cell is kept in" in error
    assert "its tables are written; the same command goes on" in error
    assert cells(out) == 4
    assert set(pd.read_csv(out / "leaderboard.csv").attack) == {"oracle", "constant_image", "random_guess", "prior_sample"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_at_once_without_a_traceback(number):  # R3
    not_ignored = partial(signal.signal, number, signal.SIG_DFL)  # the tests themselves may run under nohup
    process = start([sys.executable, "-c", WAITS], preexec_fn=not_ignored)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"{int(number)}\n"
    process.send_signal(number)  # passed on by a launcher
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 128 + number and error == ""


def test_a_command_under_nohup_survives_its_terminal():  # R3
    process = start(["nohup", sys.executable, "-c", WAITS], stdin=subprocess.DEVNULL)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n", "SIGTERM is the first signal that is recorded"
    process.kill()
    process.communicate()


def full():
    return Path("/dev/full").open("w", buffering=1)


def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize(("lost", "reason"), [(full, "No space left on device"), (without_reader, "Broken pipe")])
def test_a_lost_output_keeps_cells_and_writes_tables(words, lost, reason, tmp_path, monkeypatch, capsys):  # T9
    with lost() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert main(words) == 1
    error = capsys.readouterr().err
    assert f"The output is lost ({reason}): every finished cell is kept" in error and "its tables are written" in error
    assert cells(tmp_path / "out") == 1, "the run should stop after this cell"
    assert (tmp_path / "out" / "leaderboard.csv").exists()
    assert main([*words, "--display", "none"]) == 0 and cells(tmp_path / "out") == 4


def test_any_verb_on_a_full_output_is_one_sentence():  # T9
    with Path("/dev/full").open("w") as stream:
        command = [sys.executable, "-m", "benchmark", "list", "attacks"]
        done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to the output: No space left on device\n"


def test_a_run_with_a_closed_output_succeeds(words, tmp_path, monkeypatch):  # T9
    monkeypatch.setattr(sys, "stdout", None)
    assert main(words) == 0
    sys.stdout.close()  # the null device, which the program opened
    assert (tmp_path / "out" / "leaderboard.csv").exists()


def test_letters_that_the_output_cannot_encode_are_replaced(words, monkeypatch):  # T8
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(words) == 0
    assert b"photos ? 16x16" in raw.getvalue()


def test_a_run_with_little_memory_ends_without_a_traceback(words):  # R4
    """Run with 4.5 GB of address space, little more than torch's libraries take."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (4_500_000 * 1024,) * 2)

    process = start([sys.executable, "-m", "benchmark", *words, "--attacks", "dlg[evaluations=3]"], preexec_fn=limit)
    printed, error = process.communicate(timeout=100)
    assert process.returncode in (0, 1) and "Traceback" not in error
    assert "failed" not in printed
