import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from benchmark.experiment.store import Status, Store
from benchmark.report import batches, curves, figures, tables
from benchmark.report.build import build_report
from benchmark.report.compare import paired_difference
from benchmark.report.leaderboard import leaderboard
from benchmark.report.results import read_results
from benchmark.report.strongest import strongest
from tests.benchmark.stores import CONTROLS, PRIVACY, add, identity_of, image_sample

PROMISED = [
    *("status", "reason", "dataset", "scenario", "image_size", "batch_size", "local_steps", "clients", "timestep", "model"),
    *("model_state", "prediction_type", "prior", "defense", "attack", "knows", "adaptive", "budget", "n_ok", "n_total"),
    *("psnr_median", "psnr_mean", "psnr_ci_low", "psnr_ci_high", "psnr_gain", "psnr_gain_ci_low", "psnr_gain_ci_high"),
    *("ssim_mean", "lpips_mean", "mse_mean", "success_rate", "success_ci_low", "success_ci_high", "timestep_accuracy"),
    *(
        "epsilon_round",
        "epsilon_total",
        "delta",
        "seconds_per_victim",
        "evaluations",
        "noise_mse_mean",
        "n_accepted",
        "n_false_accepts",
        "false_accept_limit",
        "expected",
        "expected_reason",
        "schema",
    ),
]
"""The columns of leaderboard.csv, which scripts of users read: a new one goes before `schema`."""


@pytest.fixture
def run(tmp_path):
    store = Store(tmp_path)
    with store.writing():
        cells = [
            add(store, "oracle", [100.0] * 4),
            add(store, "constant_image", [10.0, 12.0, 14.0, 16.0]),
            add(store, "random_guess", [8.0, 8.0, 8.0, 8.0]),
            add(store, "strong", [40.0, 50.0, 60.0, 20.0]),
            add(store, "fragile", [90.0, None, None, None]),
            add(store, "picky", [], status=Status.SKIPPED, reason="needs the noise"),
            add(store, "broken", [], status=Status.FAILED, reason="RuntimeError: x"),
            add(store, "constant_image", [10.0, 12.0, 14.0, 16.0], defense="strict", knows="weights"),
            add(store, "random_guess", [8.0] * 4, defense="strict", knows="weights"),
            add(store, "strong", [10.0, 12.0, 14.5, 16.0], defense="strict", knows="weights"),
        ]
        store.save_plan("A title", 30.0, {"attack.strong.x": 1}, [*cells, identity_of("unfinished")])
    return store


@pytest.fixture
def table(run):
    return leaderboard(read_results(run))


def row(table, attack, defense="none"):
    (found,) = table[(table.attack == attack) & (table.defense == defense)].to_dict("records")
    return found


def test_the_columns_keep_their_promised_order(table):
    assert list(tables.published(table, table[:0]).columns) == PROMISED


def test_medians_rates_and_paired_gains(table):
    strong = row(table, "strong")
    assert (strong["psnr_median"], strong["psnr_mean"]) == (45.0, 42.5)
    assert strong["success_rate"] == 0.75
    assert strong["psnr_gain"] == np.median([30.0, 38.0, 46.0, 4.0])
    assert strong["psnr_gain_ci_low"] <= strong["psnr_gain"] <= strong["psnr_gain_ci_high"]
    assert strong["seconds_per_victim"] == 2.0
    assert math.isnan(strong["timestep_accuracy"]) and math.isnan(strong["lpips_mean"])


def test_gain_is_over_the_better_floor(table):
    assert row(table, "constant_image")["psnr_gain"] == 0
    assert row(table, "random_guess")["psnr_gain"] == -5


def test_a_floor_that_was_skipped_is_not_missing(run):
    with run.writing():
        skipped = add(run, "prior_sample", [], status=Status.SKIPPED, reason="needs a prior")
        failed = add(run, "prior_sample", [], status=Status.FAILED, reason="broke", defense="strict", knows="weights")
        run.save_plan("A title", 30.0, {}, [*run.plan()["cells"], skipped, failed])
    table = leaderboard(read_results(run))
    assert row(table, "strong")["psnr_gain"] == np.median([30.0, 38.0, 46.0, 4.0])
    assert math.isnan(row(table, "strong", "strict")["psnr_gain"]), "a floor that failed is missing"


def test_a_diverged_image_is_no_survivor(table):
    fragile = row(table, "fragile")
    assert (fragile["n_ok"], fragile["n_total"], fragile["success_rate"]) == (1, 4, 0.25)
    assert fragile["success_ci_high"] < 0.8


def test_what_did_not_run_is_a_row_with_its_reason(table):
    assert (row(table, "picky")["status"], row(table, "picky")["reason"]) == ("skipped", "needs the noise")
    assert (row(table, "broken")["status"], row(table, "broken")["n_ok"]) == ("failed", 0)


def test_trials_are_pooled_and_their_worst_status_shows(run):
    with run.writing():
        cells = [
            add(run, "constant_image", [10.0] * 4, trial=0),
            add(run, "constant_image", [10.0] * 4, trial=1),
            add(run, "strong", [40.0] * 4, trial=0),
            add(run, "strong", [], trial=1, status=Status.TIMEOUT, reason="gave up after 5 s"),
        ]
        run.save_plan("A title", 30.0, {}, cells)
    strong = row(leaderboard(read_results(run)), "strong")
    assert (strong["status"], strong["reason"]) == ("timeout", "gave up after 5 s")
    assert (strong["n_ok"], strong["n_total"], strong["success_rate"]) == (4, 8, 0.5)
    assert strong["success_ci_low"] < 0.5 < strong["success_ci_high"] < 1


def test_the_realistic_setting_comes_first_and_the_best_attack_leads_its_defense(table):
    assert list(dict.fromkeys(table.defense)) == ["strict", "none"]
    in_none = [name for name in table[table.defense == "none"].attack if name not in CONTROLS]
    assert in_none[0] == "fragile" and in_none[1] == "strong"
    headings = [heading for heading, _ in tables.sections(table)]
    assert headings[0].startswith("Realistic") and headings[1].startswith("Laboratory")


def test_a_paired_difference_pairs_by_image(run):
    found = paired_difference(read_results(run), "strong", "constant_image").set_index("defense")
    assert found.difference["none"] == np.median([30.0, 38.0, 46.0, 4.0])
    assert found.difference["strict"] == 0.0
    assert (found.ci_low <= found.difference).all() and (found.difference <= found.ci_high).all()
    opposite = paired_difference(read_results(run), "constant_image", "strong").set_index("defense")
    assert opposite.difference["none"] == -found.difference["none"]


def test_tables_and_figures_have_the_required_content(run):
    build_report(run)
    markdown, latex = (run.path / "leaderboard.md").read_text(), (run.path / "leaderboard.tex").read_text()
    for text in (markdown, latex):
        assert "A title" in text and "Unfinished: 10 of 11" in text and "no weights" in text
        assert "attack.strong.x=1" in text.replace("\\_", "_") and "Made with GIDBench" in text
        assert "With 4 photographs" in text and "87.5" in text
        assert "1/4" in text and "skipped" in text
    assert r"constant\_image" in latex
    csv = pd.read_csv(run.path / "leaderboard.csv")
    assert list(csv.columns) == PROMISED and len(csv) == 10 + 2  # and the strongest of each defense
    for kind in ("heatmap", "psnr", "reconstructions"):
        for suffix in ("png", "pdf"):
            (figure,) = (run.path / "figures").glob(f"{kind}-*.{suffix}")
            assert figure.stat().st_size > 5000


def test_figures_show_each_number_of_the_table(run, table):
    results = read_results(run)
    with figures.plt.rc_context(figures.STYLE):
        texts = [t.get_text() for t in figures.heat_map(table, "title").axes[0].texts]
    assert "45.0" in texts and "skipped" in texts and "90.0\n1/4" in texts and "failed\n0/4" in texts
    never_asked = 2 * len(set(table.attack)) - len(table)
    assert texts.count("not run") == never_asked > 0
    sheet = figures.sheet(results.samples, [("none", "strong")], "title")
    titles = [axes.get_title() for axes in sheet.axes]
    assert "40.0 dB" in titles and "source-0" in titles
    figures.plt.close("all")


def test_the_strongest_attack_under_each_defense_is_a_row_that_names_it(run, table):
    best = strongest(read_results(run), table)
    assert list(best.columns) == list(table.columns)
    won = row(best, "strongest:strong")
    assert won["psnr_gain"] == row(table, "strong")["psnr_gain"]
    assert won["psnr_gain_ci_low"] <= won["psnr_gain"] <= won["psnr_gain_ci_high"]
    assert row(best, "strongest:strong", "strict")["psnr_gain"] == 0.0


def test_what_an_attack_lost_counts_as_its_floor_where_the_strongest_is_chosen(run):
    """Of its one image that did not diverge `fragile` has 90 dB."""
    with run.writing():
        cells = [add(run, "constant_image", [10.0] * 4), add(run, "random_guess", [8.0] * 4)]
        cells += [add(run, "fragile", [90.0, None, None, None]), add(run, "steady", [11.0] * 4)]
        run.save_plan("A title", 30.0, {}, cells)
    results = read_results(run)
    (best,) = strongest(results, leaderboard(results)).to_dict("records")
    assert best["attack"] == "strongest:steady" and best["psnr_gain"] == 1.0


def test_the_strongest_attack_heads_the_tables_and_has_a_figure(run):
    build_report(run)
    assert "strongest:strong" in (run.path / "leaderboard.csv").read_text()
    assert (run.path / "leaderboard.md").read_text().index("strongest:strong") < 2000
    assert list((run.path / "figures").glob("protection-*.pdf"))


def test_many_defenses_lie_below_each_other(table):
    defenses = [f"d{i}" for i in range(figures.MAX_SIDE_BY_SIDE + 1)]
    rows = pd.concat([table[table.defense == "none"].assign(defense=name) for name in defenses])
    axes = figures.heat_map(rows, "title").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == defenses
    assert [t.get_text() for t in axes.texts].count("45.0") == len(defenses)
    figures.plt.close("all")


def test_where_timesteps_differ_every_image_stands_over_its_own(run):
    samples = read_results(run).samples
    assert set(samples.timestep) == {200}  # of the image, not the scenario's text
    samples = samples.assign(timestep=[100 * i for i in range(len(samples))])
    figure = curves.psnr_by_timestep(samples, "title")
    drawn = [point for axes in figure.axes for line in axes.lines for point in zip(*line.get_data(), strict=True)]
    shown = samples[(samples.attack != "oracle") & samples.psnr.notna()]
    assert sorted(drawn) == sorted(zip(shown.timestep, shown.psnr, strict=True))
    figures.plt.close("all")


def test_the_figure_of_a_batch_shows_each_image_of_one_update_above_its_reconstruction(run):
    samples = read_results(run).samples
    alone = samples[(samples.attack == "strong") & (samples.defense == "none")]
    together = alone.assign(victim=0, image=range(4), timestep=[700, 20, 300, 100])
    later = together.assign(victim=1)
    assert batches.first_update(alone).empty
    update = batches.first_update(pd.concat([later, together]))
    assert list(update.timestep) == [20, 100, 300, 700] and set(update.victim) == {0}
    axes = batches.whole_batch(update, "title").axes
    assert [one.get_title() for one in axes] == [
        *("t = 20", "t = 100", "t = 300", "t = 700"),
        *("50.0 dB", "20.0 dB", "60.0 dB", "40.0 dB"),
    ]
    for shown, row in zip(axes[4:], update.itertuples(), strict=True):
        assert np.allclose(shown.images[0].get_array(), np.clip((row.reconstruction + 1) / 2, 0, 1))
    figures.plt.close("all")


def test_a_curve_over_the_images_behind_an_update_joins_one_practice(table):
    def scene(images, **practice):
        scenario = practice.pop("scenario", "8x8 t=200")
        columns = {"batch_size": 1, "local_steps": 1, "clients": 1, **practice}
        return table.assign(scenario=scenario, psnr_median=images, psnr_ci_low=images, psnr_ci_high=images, **columns)

    scenes = [
        scene(1),
        scene(2, batch_size=2),
        scene(4, batch_size=4),
        scene(8, local_steps=8, scenario="8x8 lr=0.1 order known"),
    ]
    joined = curves.with_image_counts(pd.concat(scenes, ignore_index=True))
    assert list(joined.images.unique()) == [1, 2, 4, 8]
    figure = curves.psnr_by_images(joined[joined.attack.isin(["strong", "constant_image"])], "title")
    lines = {text.get_text() for text in figure.legends[0].texts}
    assert {"none, batch", "none, local steps lr=0.1 order known", "better floor"} <= lines
    (axes,) = figure.axes
    assert [1.0, 2.0, 4.0] in [list(line.get_ydata()) for line in axes.lines]
    figures.plt.close("all")


def test_privacy_is_stated_with_what_it_depends_on(run):
    with run.writing():
        cells = [add(run, "constant_image", [10.0] * 4), add(run, "strong", [40.0] * 4, privacy=PRIVACY)]
        run.save_plan("A title", 30.0, {}, cells)
    results = read_results(run)
    note = " ".join(results.notes)
    assert "sample rate 0.1" in note and "7 rounds" in note and "add or remove one image" in note
    assert row(leaderboard(results), "strong")["epsilon_total"] == math.inf


def test_local_steps_are_named_counted_and_said_how_they_were_read(run):
    with run.writing():
        record = run.record(add(run, "strong", [40.0] * 4, privacy=PRIVACY))
        practice = {"local_steps": 3, "local_lr": 0.05, "clients": 2, "order": "unknown"}
        changed = {**record.config, "scenario": {**record.config["scenario"], **practice}}
        run.save(dataclasses.replace(record, config=changed), [image_sample(victim=i, psnr=40.0) for i in range(4)])
        run.save_plan("A title", 30.0, {}, [record.identity])
    results = read_results(run)
    assert set(results.cells.scenario) == {"8x8 t=200 B=1 E=3 lr=0.05 K=2 order unknown"}
    note = " ".join(results.notes)
    assert "7 rounds of 3 local steps" in note and "one batch at the global weights" in note


def test_a_run_that_has_only_its_oracle_can_be_reported(run):
    with run.writing():
        run.save_plan("Costs $5 or $6", 30.0, {}, [identity_of("oracle-none-0"), identity_of("unfinished")])
    results, table = build_report(run)
    assert list(table.attack) == ["oracle"] and math.isnan(table.psnr_gain[0])
    assert any("Unfinished" in line for line in tables.captions(results, table))


def test_a_floor_that_failed_once_does_not_stop_the_figures(run):
    with run.writing():
        cells = [
            add(run, "constant_image", [], status=Status.FAILED, reason="x"),
            add(run, "constant_image", [10.0] * 4, trial=1),
            add(run, "strong", [40.0] * 4),
        ]
        run.save_plan("A title", 30.0, {}, cells)
    build_report(run)
    assert len(list((run.path / "figures").glob("*.png"))) == 3


def test_no_gain_is_shown_over_a_floor_that_is_still_missing(run):
    cells = ["constant_image-none-0", "random_guess-none-0", "constant_image-strict-0", "strong-strict-0"]
    with run.writing():
        run.save_plan("A title", 30.0, {}, [identity_of(name) for name in cells])
    table = leaderboard(read_results(run))
    assert math.isnan(row(table, "strong", "strict")["psnr_gain"])
    assert row(table, "random_guess")["psnr_gain"] == -5


def test_two_scenes_never_share_a_file(tmp_path):
    keys = [("folder:/a/b", "s", "m"), ("folder:/a-b", "s", "m"), ("folder:/фото", "s", "m"), ("x" * 300, "s", "m")]
    endings = {figures._ending(key) for key in keys}
    assert len(endings) == 4 and max(map(len, endings)) <= 80
    assert figures._ending(("photos", "16x16 t=200 B=1", "tiny")) == "photos-16x16-t200-B1-tiny"


def test_a_row_whose_cells_all_failed_recovered_nothing(table):
    assert row(table, "broken")["success_rate"] == 0
    assert math.isnan(row(table, "picky")["success_rate"])


@pytest.mark.parametrize(("trials", "known"), [((0, 1), True), ((0,), False), ((), False)])
def test_there_is_a_gain_only_over_every_image_of_every_planned_floor(tmp_path, trials, known):
    """Over what is left of the floors it would be another number under the same name."""
    store = Store(tmp_path)
    with store.writing():
        cells = [add(store, name, [20.0] * 4, trial=trial) for name in ("strong", "random_guess") for trial in (0, 1)]
        cells += [add(store, "constant_image", [15.0] * 4, trial=trial) for trial in trials]
        store.save_plan("A title", 30.0, {}, cells, ["constant_image", "random_guess"])
    results = read_results(store)
    table = leaderboard(results)
    assert math.isnan(row(table, "strong")["psnr_gain"]) != known
    assert len(strongest(results, table)) == known
