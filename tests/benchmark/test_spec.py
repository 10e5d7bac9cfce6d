import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.base.errors import UserError
from benchmark.base.spec import Spec, expand, split

names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
values = st.from_regex(r"[0-9a-z.]{1,6}", fullmatch=True)
specs = st.builds(Spec, names, st.dictionaries(names, values, max_size=3).map(lambda params: tuple(params.items())))


@given(st.lists(specs, min_size=1, unique=True))
def test_what_is_printed_is_what_is_parsed(some):
    assert expand(split(",".join(map(str, some)))) == some


def test_several_values_are_several_specs():
    labels = [str(spec) for spec in expand(["p[keep=0.1,0.5,seed=1,2]"])]
    assert labels == ["p[keep=0.1,seed=1]", "p[keep=0.1,seed=2]", "p[keep=0.5,seed=1]", "p[keep=0.5,seed=2]"]


def test_the_same_value_twice_is_one_cell():
    assert expand(["none", "none"]) == [Spec("none")]


@pytest.mark.parametrize("text", ["a[", "a]", "a[b=1", "a[1]", "a[b=]", "a[b=1,b=2]", "a,,b", "a[b=1]c"])
def test_what_cannot_be_parsed_is_one_sentence(text):
    with pytest.raises(UserError) as error:
        expand(split(text))
    assert "\n" not in str(error.value)
