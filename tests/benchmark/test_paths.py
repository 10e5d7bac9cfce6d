"""Tests of paths that a user gives."""

from pathlib import Path

import pytest

from benchmark.base.errors import UserError
from benchmark.base.paths import printable, user_path
from benchmark.cli import main


@pytest.mark.parametrize("text", ["~nosuchuser/images", "x" * 256, "a/" * 3000, "a\0b", ""])
def test_what_no_file_system_takes_is_one_short_sentence(text):  # T4
    with pytest.raises(UserError, match="path") as error:
        user_path(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_the_home_folder_is_expanded(monkeypatch):  # T4
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/images") == Path("/somewhere/images")


def test_a_path_that_is_no_text_can_be_shown():
    assert printable(b"caf\xe9".decode(errors="surrogateescape")) == "caf\ufffd"


@pytest.mark.parametrize("bad", ["~nosuchuser/x", "x" * 300])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "--out", "{}"],
        ["run", "--grid", "{}.yaml"],
        ["run", "--include", "{}"],
        ["run", "--datasets", "folder:{}", "--dry-run"],
        ["run", "--datasets", "cifar10:{}", "--dry-run"],
        ["run", "--models", "{}/", "--dry-run"],
        ["run", "--models", "tiny[prior={}/]", "--dry-run"],
        ["train", "--dataset", "photos", "--model", "tiny", "--steps", "1", "--out", "{}"],
        ["report", "{}"],
        ["compare", "{}", "a", "b"],
        ["check", "folder:{}"],
        ["list", "attacks", "--include", "{}"],
    ],
)
def test_every_option_that_takes_a_path_refuses_it(words, bad, capsys):  # T4
    assert main([word.format(bad) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400
