"""Tests of the user's text in tables, on the terminal and in figures."""

import csv
import io
import re
import warnings

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from benchmark.evaluation import statistics
from benchmark.experiment.store import Store
from benchmark.report import escape, figures, tables
from benchmark.report.build import build_report
from benchmark.report.leaderboard import leaderboard
from benchmark.report.results import read_results
from tests.benchmark.stores import add, config

HOSTILE = [
    "=1+1",
    "@SUM(A1)",
    "-2+3",
    "\tx",
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "# heading",
    "[link](javascript:x)",
    "one\n\ntwo",
    "\x1b[31mred\x1b[0m \x07\x9b2J\r",
    "\u202eturned",
    "\ud800 lone",
    "50% & $x_1^2$ {y} ~ \\input{z} #1 < > |",
    "[bold]markup[/] \\",
    ":smile:",
    "😀 写真 \u0b95",
    "\0null",
    "",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE)  # F18
def test_a_spreadsheet_reads_no_formula(text):
    assert not escape.csv(text).startswith(tuple("=+-@\t\r"))
    escape.csv(text).encode()


def test_numbers_stay_numbers_in_csv(tmp_path):  # F18
    assert escape.csv("dlg[lr=-1]") == "dlg[lr=-1]"


@pytest.mark.parametrize("text", HOSTILE)  # F18
def test_markdown_takes_no_text_for_its_own(text):
    shown = escape.markdown(text)
    assert not re.search(r"[<>\n\r\x1b]|(?<!\\)[`|]|\]\(|^#", shown)
    shown.encode()


@pytest.mark.parametrize("text", HOSTILE)  # F18
def test_latex_takes_no_text_for_its_own(text):
    shown = escape.tex(text)
    known = re.sub(r"\\text[a-z]+\{\}|\\symbol\{\d+\}|\\[&%$#_{}]|\$\\cdot\$|^\{\}", "", shown)
    assert not re.search(r"[\\&%$#_{}~^\n\r<>|\"`]", known)
    assert not shown.startswith(("[", "*"))
    shown.encode()


@pytest.mark.parametrize("text", HOSTILE)  # F18
def test_nothing_in_a_text_moves_the_cursor(text, capsys):
    from rich.console import Console

    Console(highlight=False, emoji=False, width=10**6).print(escape.terminal(text))
    printed = capsys.readouterr().out
    assert printed.rstrip("\n\\") == escape.plain(text).rstrip("\\")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", printed)


def test_a_figure_shows_any_text(tmp_path):  # F18
    with plt.rc_context(figures.STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = plt.figure()
        for text in HOSTILE:
            figure.text(0, 0, escape.figure(text))
        for suffix in ("png", "pdf"):
            figure.savefig(tmp_path / f"figure.{suffix}")
        plt.close(figure)


def test_long_names_stay_different_in_figures():
    names = {escape.figure("x" * 200 + ending) for ending in "ab"}
    assert len(names) == 2 and max(map(len, names)) <= escape.MAX_FIGURE_LETTERS


def hostile(path, texts):
    """A run in which every name is hostile."""
    store = Store(path)
    with store.writing():
        cells = []
        for number, text in enumerate(texts):
            changed = config(f"{text}{number}", text, dataset=text if number < 2 else "pictures")
            changed["model"]["remarks"] = [f"remark {text}"]
            cells.append(add(store, f"{number}", [40.0, 20.0], config=changed, reason=text, n_total=2))
        store.save_plan("# Title\n\n\\input{x}<b>\x1b\ud800", 30.0, {"attack.x.y": "\ud800"}, cells)
    return store


def test_tables_on_hostile_names_are_written_in_every_format(tmp_path, capsys, monkeypatch):  # F18, R6
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 20)
    monkeypatch.setattr(figures, "write_figures", lambda *arguments: [])
    run = hostile(tmp_path, HOSTILE)
    tables.print_tables(*build_report(run))
    assert "\x1b" not in capsys.readouterr().out
    rows = list(csv.reader(io.StringIO((run.path / "leaderboard.csv").read_text())))
    assert not any(cell.startswith(("=", "@", "\t")) for row in rows for cell in row)
    assert "'=1+1" in {cell for row in rows for cell in row}
    assert pd.read_csv(run.path / "leaderboard.csv").psnr_median.notna().all()
    markdown, latex = ((run.path / f"leaderboard.{kind}").read_text() for kind in ("md", "tex"))
    assert "<script>" not in markdown and "&lt;script&gt;" in markdown
    assert len([line for line in markdown.splitlines() if line.startswith("# ")]) == 1
    assert r"\input" not in latex.replace(r"\textbackslash{}input", "")
    captions = re.findall(r"\\caption\{(.*)\}", latex)
    assert len(captions) == latex.count(r"\begin{table*}")


def test_figures_on_hostile_names_are_drawn(tmp_path, monkeypatch):  # F18, R6
    monkeypatch.setattr(statistics, "BOOTSTRAP_RESAMPLES", 20)
    results, table = (run := read_results(hostile(tmp_path, ["\x1b\n\ud800 😀 写 $x", "x" * 10_000]))), leaderboard(run)
    figures.write_figures(results, table, table[:0], tmp_path / "figures")
    assert len(list((tmp_path / "figures").iterdir())) == 2 * 3 * 2


def floors(tmp_path, psnr):
    store = Store(tmp_path)
    with store.writing():
        cells = [add(store, "oracle", [100.0] * 4), add(store, "constant_image", psnr), add(store, "strong", [40.0] * 4)]
        store.save_plan("A title", 30.0, {}, cells)
    results = read_results(store)
    return results, leaderboard(results)


@pytest.mark.parametrize(("psnr", "share"), [([50.0] * 4, "100%"), ([50.0, 10.0, 10.0, 10.0], "25%")])  # F11
def test_a_floor_that_itself_succeeds_is_said_below_every_table(tmp_path, capsys, monkeypatch, psnr, share):
    monkeypatch.setattr(figures, "write_figures", lambda *arguments: [])
    results, table = floors(tmp_path, psnr)
    said = f"constant_image itself reaches 30 dB for {share} of the images of pictures"
    assert [line for line in tables.captions(results, table) if said in line and "success says nothing there" in line]
    assert not [line for line in tables.captions(results, table) if line.startswith(("oracle", "strong"))]
    build_report(Store(tmp_path))
    tables.print_tables(results, table)
    for text in (
        (tmp_path / "leaderboard.md").read_text(),
        (tmp_path / "leaderboard.tex").read_text(),
        capsys.readouterr().out,
    ):
        assert said in " ".join(text.split()).replace("\\", "")


def test_floors_below_the_threshold_need_no_remark(tmp_path):  # F11
    assert not [line for line in tables.captions(*floors(tmp_path, [10.0] * 4)) if "itself reaches" in line]


def test_remarks_of_data_set_and_model_stand_once_below_the_tables(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        cells = []
        for attack in ("strong", "weak"):
            changed = config(attack)
            changed["dataset"]["remarks"], changed["model"]["remarks"] = ["Three files were passed over."], ["Zero SNR."]
            cells.append(add(store, attack, [40.0] * 4, config=changed))
        store.save_plan("A title", 30.0, {}, cells)
    assert [note for note in read_results(store).notes if note in ("Three files were passed over.", "Zero SNR.")] == [
        "Three files were passed over.",
        "Zero SNR.",
    ]
