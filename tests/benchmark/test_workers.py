"""Cells in several worker processes: the same results, and the same care when one of them fails."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import gidbench
from benchmark.base import machine
from benchmark.base.errors import UserError
from benchmark.base.events import Step
from benchmark.cli import main
from benchmark.experiment import workers
from benchmark.experiment.display import Silent
from benchmark.experiment.grid import Grid
from benchmark.experiment.job import Job
from benchmark.experiment.records import Status
from benchmark.experiment.session import Session
from benchmark.experiment.store import Store
from benchmark.experiment.workers import Workers
from tests.scenes import run_cell

ROOT = Path(__file__).resolve().parents[2]

GRID = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), victims=2, evaluations=3)

BODIES = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "os.kill(os.getpid(), signal.SIGSEGV)",
    "stuck": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); time.sleep(1000)",
    "slow": "time.sleep(1000)",
}
"""What attacks do that end their process, or do not return: with and without an answer to the alarm of the time limit."""


class Recorder(Silent):
    """Keeps the names of the cells that have started, and the evaluations that each has spent."""

    def __init__(self):
        self.begun, self.spent = [], {}

    def begin(self, cell):
        self.begun.append(cell.identity)

    def step(self, cell, step):
        self.spent[cell.attack_label] = self.spent.get(cell.attack_label, 0) + step.count


def include(folder, bodies=BODIES):
    for name, body in bodies.items():
        source = f'''
            """An attack for a test.

            Source: ours
            """
            import os
            import signal
            import time
            from dataclasses import dataclass
            from benchmark.plugins import Attack

            @dataclass(frozen=True)
            class {name.title()}(Attack):
                def run(self, observations, generator):
                    {body}
        '''
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return (folder,)


def test_a_worker_that_fails_costs_one_cell_and_changes_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 2.0)
    job = Job(dataclasses.replace(GRID, attacks=("dlg", *BODIES)), include(tmp_path))
    cells, display = job.cells(), Recorder()
    outcomes = {cell.attack_label: outcome for cell, outcome in Workers(job, 2, timeout=12.0).outcomes(cells, display)}
    assert sorted(display.begun) == sorted(cell.identity for cell in cells)
    ended = {name: (outcomes[name].record.status, outcomes[name].record.reason) for name in BODIES}
    assert ended["killed"] == (
        Status.OOM,
        "its worker process was ended by SIGKILL, as the system does where memory runs out",
    )
    assert ended["crashed"] == (Status.FAILED, "its worker process was ended by SIGSEGV")
    assert ended["stuck"] == (Status.TIMEOUT, "gave up after 12 s; its worker process did not answer and was killed")
    assert ended["slow"] == (Status.TIMEOUT, "gave up after 12 s")
    for cell in cells:
        if cell.attack_label in BODIES:
            continue
        there, here = outcomes[cell.attack_label], run_cell(cell)
        assert there.record.status == here.record.status
        assert there.record.config == here.record.config
        for mine, own in zip(there.samples, here.samples, strict=True):
            assert (mine.reconstruction == own.reconstruction).all()
            assert (mine.measured, mine.loss) == (own.measured, own.loss)


def test_a_worker_refuses_a_cell_whose_identity_it_computes_differently():
    other = dataclasses.replace(GRID, seed=1, attacks=("constant_image",))
    with pytest.raises(UserError, match="have changed since the run began"):
        list(Workers(Job(GRID), 1).outcomes(Job(other).cells()[:1], Silent()))


def test_a_worker_that_cannot_plan_says_why(tmp_path):
    folders = include(tmp_path, {"slow": BODIES["slow"]})
    job = Job(dataclasses.replace(GRID, attacks=("slow",)), folders)
    cells = job.cells()
    (tmp_path / "slow.py").unlink()
    with pytest.raises(UserError, match="unknown attack 'slow'"):
        list(Workers(job, 1).outcomes(cells[:1], Silent()))


@pytest.fixture
def words(tmp_path):
    """A command line whose last cell does not end, on two workers."""
    grid = {**dataclasses.asdict(GRID), "attacks": ["slow"], "parts": []}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    include(tmp_path, {"slow": BODIES["slow"]})
    places = ["--grid", str(tmp_path / "g.yaml"), "--include", str(tmp_path), "--out", str(tmp_path / "out")]
    return ["run", *places, "--workers", "2", "--display", "none"]


def wait_for_controls(folder, goes_on):
    """Wait until four cells are stored. Return whether they are: not if the run has ended or a minute is over."""
    ends = time.monotonic() + 60
    while (found := len(list(folder.glob("out/cells/[0-9a-f]*/record.json")))) < 4 and goes_on() and time.monotonic() < ends:
        time.sleep(0.01)
    return found >= 4


def runs(process):
    """Return whether a process is there; a zombie is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def remaining(crew):
    """Return the processes that still run after the time in which they should have ended."""
    ends = time.monotonic() + 30
    while (there := [process for process in crew if runs(process)]) and time.monotonic() < ends:
        time.sleep(0.05)
    return there


def test_an_interrupted_run_ends_its_workers_and_keeps_finished_cells(words, tmp_path, capsys):
    crew, over = [], []

    def interrupt():
        if wait_for_controls(tmp_path, lambda: not over):
            crew.extend(child.pid for child in multiprocessing.active_children())
            os.kill(os.getpid(), signal.SIGTERM)  # a shell lets its background jobs ignore SIGINT

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    code = main(words)
    over.append(True)
    thread.join()
    assert code == 143
    assert "Interrupted: every finished cell is kept in" in capsys.readouterr().err
    assert (tmp_path / "out" / "leaderboard.csv").exists()
    assert len(crew) == 2 and not remaining(crew)


def test_workers_end_when_their_run_is_killed(words, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "benchmark", *words], cwd=ROOT)
    assert wait_for_controls(tmp_path, lambda: process.poll() is None)
    crew = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len(crew) >= 2 and not remaining(crew)


def test_ctrl_c_while_workers_start_prints_no_traceback(words, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmark", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 3:  # two workers and multiprocessing's tracker
        time.sleep(0.01)
    time.sleep(0.3)  # they import torch now
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error and "Interrupted: every finished cell is kept in" in error


def test_steps_are_counted_though_not_each_is_sent(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    clock = iter([0.05, 0.1, 0.25, 0.3, 0.5])
    report = workers._Reporter(theirs, sent=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(workers.time, "monotonic", lambda: next(clock))
        for evaluation in range(1, 6):
            report(Step(evaluation, 1 / evaluation))
    sent = []
    while ours.poll():
        sent.append(pickle.loads(ours.recv_bytes()))
    assert [(step.evaluation, step.count) for step in sent] == [(3, 3), (5, 2)]


def test_a_worker_that_cannot_start_says_what_helps(monkeypatch):
    monkeypatch.setattr(workers, "_work", sys.exit)  # the worker raises a TypeError: too many arguments
    with pytest.raises(UserError, match="no worker process can start: the last one ended with exit code 1; use fewer workers"):
        list(Workers(Job(GRID), 1).outcomes(Job(GRID).cells()[:1], Silent()))


@pytest.mark.parametrize("count", [0, -1, 257, 10**30])
def test_a_number_of_workers_out_of_range_is_one_sentence(tmp_path, count):
    with pytest.raises(UserError, match="the number of workers should be from 1 to 256"):
        Session(Job(GRID), Store(tmp_path)).executor(count, None)


def test_processes_share_cores_and_memory(monkeypatch):
    monkeypatch.setattr(machine, "_system_free", lambda: 8 * 2**30)
    monkeypatch.setattr(machine, "_cgroup_free", lambda: 6 * 2**30)
    monkeypatch.setattr(machine, "_allocator_free", lambda: 2**20)
    whole, device = machine.cores(), torch.device("cpu")
    try:
        machine.share_machine(3)
        assert machine.cores() == max(1, whole // 3)
        assert machine.free_memory(device) == 2 * 2**30 + 2**20  # what the allocator holds is this process's own
    finally:
        machine.share_machine(1)
    assert (machine.cores(), machine.free_memory(device)) == (whole, 6 * 2**30 + 2**20)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_out_of_range_is_one_sentence(tmp_path, timeout):
    with pytest.raises(UserError, match="the time limit should be a number of seconds above 0"):
        Session(Job(GRID), Store(tmp_path)).executor(2, timeout)


def test_two_workers_leave_the_leaderboard_of_one(tmp_path):
    grid = dataclasses.replace(GRID, defenses=("none", "gradient_pruning[keep=0.1]"))
    one, two = (gidbench.run(grid, tmp_path / str(count), workers=count) for count in (1, 2))
    times = ["seconds_per_victim"]
    assert two.leaderboard.drop(columns=times).equals(one.leaderboard.drop(columns=times))
    assert all((a == b).all() for a, b in zip(one.images.reconstruction, two.images.reconstruction, strict=True))
