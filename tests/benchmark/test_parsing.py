"""Tests of mistakes in YAML and JSON that a parser alone would accept."""

import pytest

from benchmark.base.errors import UserError
from benchmark.base.parsing import MAX_YAML_NODES, parse_json, parse_yaml, read_text

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attacks: [dlg]\nattacks: [adam_l2]", r"gives the key 'attacks' twice \(line 2\)"),  # F10
        ("parts:\n- {victims: 1, victims: 2}", "gives the key 'victims' twice"),
        ("seed: 2001-99-99", "holds a value that cannot be read"),  # T2, this one and below
        ("seed: " + "9" * 4500, "cannot be read|beyond 64 bits"),
        ("seed: 99999999999999999999", "an integer beyond 64 bits"),
        ("seed: !!bool x", "cannot be read"),
        ('seed: !!int ""', "cannot be read"),
        ("a" * 300_000, "more than 262144 characters"),
        ("seed: !!python/name:os.system", "is not YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "nests more than 50 levels"),
        ("a: " + "[" * 60 + "]" * 60, "nests more than 50 levels"),
        ("a: &a [*a]", "nests more than 50 levels, or holds itself"),
        (BOMB, "holds more than"),
        ("a: [" + "x," * (MAX_YAML_NODES + 1) + "]", "holds more than"),
        ('title: "\\ud800"', "cannot be encoded as UTF-8"),  # R6
        ("title: [", "is not YAML"),
    ],
)
def test_yaml_beyond_its_limits_is_one_short_sentence(text, words):
    with pytest.raises(UserError, match=words) as error:
        parse_yaml(text, "grid g")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "nests more than 50 levels"),  # T6
        ("[" * 60 + "]" * 60, "nests more than 50 levels"),
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": ' + "9" * 4500 + "}", "is not JSON"),
        ('{"a": 99999999999999999999}', "an integer beyond 64 bits"),
        ('{"a": "\\ud800"}', "cannot be encoded as UTF-8"),
        ("{", "is not JSON"),
    ],
)
def test_json_beyond_its_limits_is_one_short_sentence(text, words):
    with pytest.raises(UserError, match=words) as error:
        parse_json(text, "card")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_plain_values_are_read_as_they_are():
    text = "base: &base {a: 1}\nother: {<<: *base, b: 2.5}\nlist: [x, null, true]"
    assert parse_yaml(text, "grid g") == {"base": {"a": 1}, "other": {"a": 1, "b": 2.5}, "list": ["x", None, True]}
    assert parse_yaml("", "grid g") is None
    assert parse_json('{"a": [1, 2.5, null, "é"]}', "card") == {"a": [1, 2.5, None, "é"]}


def test_a_file_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9")
    for path, words in ((tmp_path, "is not a file"), (tmp_path / "latin", "cannot read"), (tmp_path / "no", "No such file")):
        with pytest.raises(UserError, match=words):
            read_text(path, "grid")
