from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.base.config import build
from benchmark.base.errors import UserError


@dataclass(frozen=True)
class Example:
    required: int
    share: float = 0.5
    flag: bool = False
    mode: Literal["fast", "slow"] = "fast"
    when: Literal["always"] | int | tuple[int, ...] = "always"
    limit: int | None = None

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError("share must be from 0 to 1")


@given(st.integers(-1000, 1000), st.floats(0, 1), st.booleans())
def test_text_and_yaml_values_mean_the_same(required, share, flag):
    typed = build(Example, {"required": required, "share": share, "flag": flag}, "example")
    text = build(Example, {"required": str(required), "share": repr(share), "flag": str(flag)}, "example")
    assert typed == text == Example(required, share, flag)


@pytest.mark.parametrize("when", ["always", 3, [1, 2]])
def test_a_union_takes_each_of_its_types(when):
    built = build(Example, {"required": 1, "when": when}, "example")
    assert built.when == (tuple(when) if isinstance(when, list) else when)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "needs 'required'"),
        ({"required": 1, "shar": 0.1}, "did you mean 'share'?"),
        ({"required": "one"}, "required should be a whole number, not 'one'"),
        ({"required": 1.5}, "a whole number"),
        ({"required": True}, "a whole number"),
        ({"required": 1, "flag": "perhaps"}, "true or false"),
        ({"required": 1, "mode": "fats"}, "did you mean 'fast'?"),
        ({"required": 1, "share": 2}, "share must be from 0 to 1"),
        ({"required": 1, "when": "never"}, "always or a whole number or a list of a whole number"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(values, words):
    with pytest.raises(UserError) as error:
        build(Example, values, "example")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
