import io

import pytest
from rich.console import Console

from benchmark.base.events import Step
from benchmark.experiment.display import Bar, choose
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry
from tests.scenes import run_cell


@pytest.fixture(scope="module")
def cells():
    defenses = ("gradient_pruning[keep=0.5]", "private_noise")
    grid = Grid("t", ("photos",), ("tiny",), defenses, ("inverting_gradients",), victims=1, evaluations=2)
    return [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label == "inverting_gradients"]


@pytest.fixture(scope="module")
def records(cells):
    return [run_cell(cell).record for cell in cells]


def test_the_bar_shows_the_cell_its_loss_and_the_time_left(cells, records):
    out = io.StringIO()
    bar = Bar(cells, Console(file=out, width=200, force_terminal=True))
    with bar:
        bar.begin(cells[0])
        bar.step(cells[0], Step(1, 0.125))
        bar.live.refresh()
        bar.end(cells[0], records[0])
        bar.begin(cells[1])
        bar.end(cells[1], records[1])
    shown = out.getvalue()
    for words in ("gradient_pruning[keep=0.5]", "matching loss 0.125", "left", "0/2", "2/2", "skipped (needs the noise"):
        assert words in shown
    assert bar.finished == bar.planned == 2 and not bar.running


def test_with_several_running_cells_the_bar_shows_the_loss_of_the_named_one(cells, records):
    bar = Bar(cells, Console(file=io.StringIO()))
    for cell in cells[:2]:
        bar.begin(cell)
    bar.step(cells[1], Step(1, 0.5))
    task = bar.progress.tasks[0]
    assert (task.description, task.fields["loss"]) == (f"{cells[0].name} (and 1 more)", "")
    bar.end(cells[0], records[0])
    bar.step(cells[1], Step(1, 0.25))
    assert (task.description, task.fields["loss"]) == (cells[1].name, "matching loss 0.25")


def test_the_plain_display_prints_one_line_per_cell(cells, records, capsys):
    with choose("plain", cells) as display:
        for cell, record in zip(cells, records, strict=True):
            display.begin(cell)
            display.step(cell, Step(1, 0.5))
            display.end(cell, record)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[1/2] inverting_gradients vs gradient_pruning[keep=0.5]") and ": ok in " in lines[0]
    assert lines[1].startswith("[2/2]") and "skipped (needs the noise" in lines[1]


def test_no_display_prints_nothing(cells, records, capsys):
    with choose("none", cells) as display:
        display.begin(cells[0])
        display.end(cells[0], records[0])
    assert capsys.readouterr().out == ""
