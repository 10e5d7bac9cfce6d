"""Checks that the published table of defenses agrees with theory."""

from pathlib import Path

import pandas as pd
import pytest

from benchmark.base.spec import expand_stacks

TABLE = pd.read_csv(Path(__file__).resolve().parents[1] / "results" / "defenses" / "leaderboard.csv")
STRONGEST = TABLE[TABLE.attack.str.startswith("strongest:") & (TABLE.n_ok > 0)]
TRAINED_DIFFERENTLY = ("timestep_range", "dpdm", "lora", "withhold")
"""Defenses whose update cannot be computed from the undefended one: other timesteps, several draws, or another network."""
NOISE = {"dp_sgd": "noise_multiplier", "client_dp": "noise_multiplier", "gaussian_noise": "ratio"}


def ladders():
    """Return lists of two or more rows that differ only in the size of the noise, smallest first, by what they share."""
    rungs = {}
    for number, row in enumerate(STRONGEST.itertuples()):
        (stack,) = expand_stacks([row.defense])
        if len(stack) == 1 and stack[0].name in NOISE:
            params, size = dict(stack[0].params), NOISE[stack[0].name]
            noise = float(params.pop(size))
            rungs.setdefault((row.scenario, stack[0].name, *params.items()), []).append((noise, number))
    return {key: [STRONGEST.iloc[number] for _, number in sorted(own)] for key, own in rungs.items() if len(own) > 1}


LADDERS = ladders()


def test_ladders_are_there():
    assert {key[1] for key in LADDERS} == set(NOISE)


@pytest.mark.parametrize("key", LADDERS, ids=str)
def test_stronger_noise_never_helps_the_strongest_attack(key):
    """Compare neighbours: whoever sees the weaker noise can add the rest and run the attack on the stronger one."""
    for weaker, stronger in zip(LADDERS[key], LADDERS[key][1:], strict=False):
        assert stronger.psnr_median <= weaker.psnr_ci_high, (weaker.defense, stronger.defense)


UNDEFENDED = STRONGEST[STRONGEST.defense == "none"].set_index("scenario")
POSTPROCESSED = STRONGEST[(STRONGEST.defense != "none") & ~STRONGEST.defense.str.startswith(TRAINED_DIFFERENTLY)]


@pytest.mark.parametrize("row", list(POSTPROCESSED.itertuples()), ids=lambda row: f"{row.defense} {row.scenario}")
def test_postprocessing_never_leaks_more(row):
    """Compare with the undefended update: whoever has it can compute what the defense releases."""
    assert row.psnr_ci_low <= UNDEFENDED.psnr_ci_high[row.scenario]
