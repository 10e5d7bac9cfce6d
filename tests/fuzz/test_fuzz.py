"""500 generated cases, the same every time. `long.py` beside this file runs thousands."""

import pytest

from tests.fuzz.workers import bad_cases

SEEDS = {
    "grids": range(46, 346),
    "specs": range(80, 156),
    "checkpoints": range(74, 114),
    "images": range(3, 43),
    "data": range(3, 43),
    "run_dirs": range(11, 15),
}
"""Numbers of the cases of each kind: fewer of the slow kinds."""


@pytest.mark.parametrize("kind", SEEDS)
def test_no_case_is_bad(kind, tmp_path):
    bad = bad_cases(kind, SEEDS[kind], tmp_path)
    assert not bad, "\n".join([f"{len(bad)} faults (python tests/fuzz/long.py --only {kind} --seed N)", *map(str, bad)])
