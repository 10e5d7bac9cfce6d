"""Tests that each number of a plugin, grid or scenario has a range, and that nothing outside it is accepted."""

import dataclasses
import math
from typing import Annotated, get_type_hints

import pytest

from benchmark.base.config import build
from benchmark.base.errors import UserError
from benchmark.base.ranges import MAX_NUMBER, Count, InnerShare, Range, check_fields, declared
from benchmark.diffusion.conventions import Convention
from benchmark.experiment.grid import Grid
from benchmark.registry import Registry, load
from benchmark.scenario import Scenario

PLUGINS = [load(plugin) for kind in ("attack", "defense", "dataset") for plugin in Registry().all(kind)]
GRID = {"title": "t", "datasets": ("photos",), "models": ("tiny",), "defenses": ("none",), "attacks": ("dlg",)}


def is_number(hint):
    return hint in (int, float) or any(part in (int, float) for part in getattr(hint, "__args__", ()))


FIELDS = [
    (cls, field.name)
    for cls in (*PLUGINS, Grid, Scenario, Convention)
    for field in dataclasses.fields(cls)
    if field.init and is_number(get_type_hints(cls)[field.name])
]


def made(cls, **values):
    return cls(**({**GRID, **values} if cls is Grid else values))


def test_there_is_something_to_check():
    assert len(FIELDS) > 50


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e40, -(10**30)])
def test_every_field_refuses_a_value_that_is_no_finite_number(cls, name, value):  # T5
    with pytest.raises(ValueError, match=rf"{name} must be .*not "):
        made(cls, **{name: value})
    with pytest.raises(UserError):
        build(cls, {**(GRID if cls is Grid else {}), name: str(value)}, "it")


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_but_a_seed_declares_its_range_and_keeps_it(cls, name):
    if name == "seed":
        return
    allowed = declared(get_type_hints(cls, include_extras=True)[name])[0]
    for outside in (allowed.least - 1, allowed.most + max(1, allowed.most * 1e-6)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            made(cls, **{name: type(allowed.least)(outside)})


@dataclasses.dataclass(frozen=True)
class Example:
    count: Count = 1
    share: InnerShare = 0.5
    several: tuple[Annotated[float, Range(-1, 1)], ...] = ()
    free: float = 0.0
    flag: bool = True
    perhaps: Count | None = None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": MAX_NUMBER + 1}, r"count must be at most 1e\+09, not 1000000001"),
        ({"share": 1.0}, "share must be between 0 and 1, not 1"),
        ({"several": (0.5, 2.0)}, "several must be from -1 to 1, not 2"),
        ({"free": math.nan}, "free must be .*finite, not nan"),
        ({"perhaps": 0}, "perhaps must be at least 1, not 0"),
    ],
)
def test_a_number_outside_names_field_range_and_value(values, words):
    with pytest.raises(ValueError, match=words):
        check_fields(Example(**values))


def test_what_lies_inside_passes():
    check_fields(Example(count=MAX_NUMBER, share=0.999, several=(-1.0, 1.0), free=-5.0, flag=False, perhaps=3))
