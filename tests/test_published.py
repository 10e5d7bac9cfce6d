"""What theory demands of the published table of defenses, whatever the numbers are."""

from pathlib import Path

import pandas as pd
import pytest

from benchmark.base.spec import expand_stacks

TABLE = pd.read_csv(Path(__file__).resolve().parents[1] / "results" / "defenses" / "leaderboard.csv")
STRONGEST = TABLE[TABLE.attack.str.startswith("strongest:") & (TABLE.n_ok > 0)]
OTHERWISE_TRAINED = ("timestep_range", "dpdm", "lora", "withhold")
"""Defenses whose update is not made of the plain one: other timesteps, several draws, or another network."""
NOISE = {"dp_sgd": "noise_multiplier", "client_dp": "noise_multiplier", "gaussian_noise": "ratio"}


def ladders():
    """Lists of rows alike but for the size of the noise, the smallest first, by what they share; of two rows at the least."""
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
def test_stronger_noise_never_raises_the_strongest_attack_beyond_its_interval(key):
    """The noise of a stronger defense is that of the weaker one and some more, so whoever rebuilds behind it could here too."""
    for weaker, stronger in zip(LADDERS[key], LADDERS[key][1:], strict=False):
        assert stronger.psnr_median <= weaker.psnr_ci_high, (weaker.defense, stronger.defense)


UNDEFENDED = STRONGEST[STRONGEST.defense == "none"].set_index("scenario")
MADE_OF_IT = STRONGEST[(STRONGEST.defense != "none") & ~STRONGEST.defense.str.startswith(OTHERWISE_TRAINED)]


@pytest.mark.parametrize("row", list(MADE_OF_IT.itertuples()), ids=lambda row: f"{row.defense} {row.scenario}")
def test_what_is_made_of_the_plain_update_tells_no_more_beyond_the_intervals(row):
    """Whoever has the plain update could make of it what the defense releases."""
    assert row.psnr_ci_low <= UNDEFENDED.psnr_ci_high[row.scenario]
