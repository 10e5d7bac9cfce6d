"""500 generated cases, the same every time: `long.py` beside this file runs thousands."""

import pytest

from tests.fuzz.workers import bad_cases

MIX = {"grids": 356, "specs": 120, "checkpoints": 10, "images": 6, "data": 6, "run_dirs": 2}
"""Cases of each kind: the more the less one takes."""


@pytest.mark.parametrize("kind", MIX)
def test_no_case_is_bad(kind, tmp_path):
    bad = bad_cases(kind, range(MIX[kind]), tmp_path)
    assert not bad, "\n".join([f"{len(bad)} faults (python tests/fuzz/long.py --only {kind} --seed N)", *map(str, bad)])
