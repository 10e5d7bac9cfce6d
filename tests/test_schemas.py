"""SCHEMAS.md lists what the code reads and writes, in the same order."""

import dataclasses
import re
from pathlib import Path

import pytest

from benchmark.evaluation import metrics
from benchmark.experiment.grid import GRID_SCHEMA, Grid
from benchmark.experiment.records import SCHEMA_VERSION, Record, Status
from benchmark.report.expected import EXPECTED
from benchmark.report.results import AXES
from benchmark.report.tables import CSV_SCHEMA
from benchmark.scenario import Scenario

TEXT = (Path(__file__).resolve().parent.parent / "SCHEMAS.md").read_text(encoding="utf-8")


def tables():
    """Return the names in the first column of each table."""
    blocks = re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)
    return [
        [name for line in block.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])] for block in blocks
    ]


def test_the_versions_are_those_of_the_code():
    assert re.findall(r"^## (\w+), schema (\d+)$", TEXT, re.MULTILINE) == [
        ("Grid", str(GRID_SCHEMA)),
        ("Record", str(SCHEMA_VERSION)),
        ("Leaderboard", str(CSV_SCHEMA)),
    ]


def test_every_name_is_listed_in_order():
    grid, scenario, record, leaderboard = tables()
    for listed, cls in ((grid, Grid), (scenario, Scenario), (record, Record)):
        assert listed == [field.name for field in dataclasses.fields(cls)]
    measured = [column for metric in metrics.METRICS for column in metric.columns]
    assert leaderboard == ["status", "reason", *AXES, "n_ok", "n_total", *measured, *EXPECTED, "schema"]


def test_every_status_is_listed():
    (line,) = [line for line in TEXT.splitlines() if line.startswith("| `status` |")]
    assert set(re.findall(r"`(\w+)`", line)) == {"status", *Status}


def test_a_grid_of_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema must be 1, the only one that this version reads, not 2"):
        Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), schema=2)
