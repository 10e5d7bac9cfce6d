"""Cells in several worker processes: the same results, and the same care when one of them fails."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import yaml

from benchmark.base.errors import UserError
from benchmark.base.machine import cores, share_machine
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


def test_a_worker_that_fails_costs_one_cell_and_the_others_are_those_of_one_process(tmp_path, monkeypatch):
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


def wait_for_controls(folder):
    while len(list(folder.glob("out/cells/[0-9a-f]*/record.json"))) < 4:
        time.sleep(0.01)


def remaining(crew):
    """Return the processes that are there after the time in which they should have ended."""
    ends = time.monotonic() + 30
    while (there := [child for child in crew if Path(f"/proc/{child}").exists()]) and time.monotonic() < ends:
        time.sleep(0.05)
    return there


def test_an_interrupted_run_ends_its_workers_and_keeps_finished_cells(words, tmp_path, capsys):
    crew = []

    def interrupt():
        wait_for_controls(tmp_path)
        crew.extend(child.pid for child in multiprocessing.active_children())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(words) == 130
    assert "Interrupted: every finished cell is kept in" in capsys.readouterr().err
    assert (tmp_path / "out" / "leaderboard.csv").exists()
    assert len(crew) == 2 and not remaining(crew)


def test_workers_end_when_their_run_is_killed(words, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "benchmark", *words], cwd=ROOT)
    wait_for_controls(tmp_path)
    crew = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len(crew) >= 2 and not remaining(crew)


@pytest.mark.parametrize("count", [0, -1, 257, 10**30])
def test_a_number_of_workers_out_of_range_is_one_sentence(tmp_path, count):
    with pytest.raises(UserError, match="the number of workers should be from 1 to 256"):
        Session(Job(GRID), Store(tmp_path)).executor(count, None)


def test_processes_share_the_cores():
    whole = cores()
    try:
        share_machine(2)
        assert cores() == max(1, whole // 2)
    finally:
        share_machine(1)
    assert cores() == whole
