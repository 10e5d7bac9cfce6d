import dataclasses

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark.base.errors import UserError
from benchmark.base.spec import expand, parse_one, split
from benchmark.experiment import grid as grids
from benchmark.experiment.grid import Grid, packaged_grids, read_grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry, load
from benchmark.scenario import Scenario, label
from benchmark.types import Capability
from tests.scenes import play

BASE = Grid("title", ("photos",), ("tiny",), ("none",), ("dlg",), evaluations=3)


@pytest.fixture(scope="module")
def registry():
    return Registry()


def changed(**values):
    return dataclasses.replace(BASE, **values)


def identities(grid, registry, device="cpu"):
    return {(c.attack_label, c.defense_label, c.trial): c.identity for c in plan(grid, registry, device)}


@pytest.mark.parametrize("name", sorted(packaged_grids()))
def test_every_shipped_grid_can_be_planned(name, registry, monkeypatch):
    for published in ("cifar10", "cifar100", "celeba_hq", "lsun_bedroom"):  # their files are not here
        dataset = load(registry.get("dataset", published))
        for method, answer in (("fingerprint", "files"), ("contents", None), ("remarks", ())):
            monkeypatch.setattr(dataset, method, lambda self, answer=answer: answer)
    cells = plan(read_grid(name), registry, "cpu")
    quick = max(cell.budget for cell in cells) < 1000 and any(cell.defense_label != "none" for cell in cells)
    assert not quick or "no evidence of protection" in read_grid(name).title


def test_controls_and_the_ceiling_stand_in_every_grid(registry):
    labels = [cell.attack_label for cell in plan(BASE, registry, "cpu")]
    assert set(labels) == {"oracle", "constant_image", "prior_sample", "random_guess", "dlg"} and len(labels) == 5


def test_what_needs_a_prior_is_skipped_where_none_is_granted(registry):
    cells = {
        (cell.model.label, cell.attack_label): cell.missing
        for cell in plan(dataclasses.replace(BASE, models=("tiny", "tiny:trained")), registry, "cpu")
    }
    assert cells["tiny", "prior_sample"] == {Capability.PRIOR}
    assert not cells["tiny:trained", "prior_sample"] and not cells["tiny", "dlg"]


def test_the_prior_is_part_of_what_a_cell_is(registry):
    models = ("tiny:trained", "tiny:trained[prior=none]", "tiny:trained[prior=tiny:trained]")
    cells = [plan(dataclasses.replace(BASE, models=(model,)), registry, "cpu")[-1] for model in models]
    assert cells[0].identity != cells[1].identity
    assert cells[0].identity == cells[2].identity, "another way to say the same"


def test_lists_of_parameters_become_rows(registry):
    cells = plan(changed(defenses=("gradient_pruning[keep=0.1,0.5]",)), registry, "cpu")
    assert {(c.defense_label, c.defense.keep) for c in cells} == {
        ("gradient_pruning[keep=0.1]", 0.1),
        ("gradient_pruning[keep=0.5]", 0.5),
    }


def test_settings_reach_their_attack_and_brackets_win(registry):
    grid = changed(set={"attack.dlg.restarts": "2"}, attacks=("dlg", "dlg[evaluations=9]"))
    cells = {c.attack_label: c.attack for c in plan(grid, registry, "cpu")}
    assert (cells["dlg"].evaluations, cells["dlg"].restarts) == (3, 2)
    assert cells["dlg[evaluations=9]"].evaluations == 9


def test_image_size_is_the_models_own_where_the_scenario_is_silent(registry):
    assert plan(changed(models=("small",)), registry, "cpu")[0].scenario.image_size == 32


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"victims": 5},
        {"success_db": 20.0},
        {"evaluations": 4},
        {"scenarios": (Scenario(timesteps=5),)},
        {"scenarios": (Scenario(local_steps=2),)},
        {"scenarios": (Scenario(clients=2),)},
        {"models": ("tiny[prediction=v_prediction]",)},
        {"set": {"attack.dlg.restarts": 2}},
    ],
)
def test_whatever_can_change_the_answer_changes_the_identity(registry, other):
    before, after = identities(BASE, registry), identities(changed(**other), registry)
    assert before["dlg", "none", 0] != after["dlg", "none", 0]


def test_two_ways_to_ask_for_one_cell_give_one(registry):
    grid = changed(
        defenses=("gradient_pruning", "gradient_pruning[keep=0.1]", "gradient_pruning[keep=0.10]"),
        models=("tiny", "tiny[prediction=epsilon]"),
        scenarios=(Scenario(timesteps=200), Scenario(timesteps=200, image_size=16), Scenario(timesteps=(200,))),
    )
    cells = plan(grid, registry, "cpu")
    assert len(cells) == 5
    assert {(c.defense_label, c.model.label) for c in cells} == {("gradient_pruning", "tiny")}
    assert len({c.keys for c in cells}) == 5


def test_a_step_size_without_effect_is_no_other_cell_and_one_with_effect_keeps_the_draw(registry):
    scenarios = (Scenario(), Scenario(local_lr=0.5), Scenario(local_steps=2), Scenario(local_steps=2, local_lr=0.5))
    cells = [c for c in plan(changed(scenarios=scenarios), registry, "cpu") if c.attack_label == "dlg"]
    assert [(c.scenario.local_steps, c.scenario.local_lr) for c in cells] == [(1, 0.01), (2, 0.01), (2, 0.5)]
    assert cells[0].keys.scenario != cells[1].keys.scenario == cells[2].keys.scenario


def test_practice_that_changes_what_is_sent_is_another_cell_with_the_same_draws(registry):
    scenarios = (Scenario(), Scenario(optimiser="adam"), Scenario(optimiser="adam", local_lr=0.1), Scenario(message="weights"))
    same = (Scenario(eps=1e-3), Scenario(beta1=0.5))  # they have no effect on SGD
    cells = [c for c in plan(changed(scenarios=scenarios + same), registry, "cpu") if c.attack_label == "dlg"]
    assert len(cells) == 4 and len({c.identity for c in cells}) == 4
    assert len({c.keys.scenario for c in cells}) == 1


def test_new_fields_of_the_scenario_do_not_move_the_draws_of_plain_clients(registry):
    """The streams are named as they were before clients could take several steps."""
    plain = plan(changed(scenarios=(Scenario(timesteps=200),)), registry, "cpu")[0].keys.scenario
    fields = '"batch_size":1,"clients":1,"image_size":16,"local_steps":1,"sample_rate":1.0,"sampling":"fixed","timesteps":200'
    assert plain == "{" + fields + "}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "16x16 t=uniform B=1"),
        ({"local_lr": 0.5}, "16x16 t=uniform B=1"),
        ({"local_steps": 3, "local_lr": 0.5}, "16x16 t=uniform B=1 E=3 lr=0.5"),
        ({"clients": 2, "batch_size": 4, "order": "unknown"}, "16x16 t=uniform B=4 K=2 order unknown"),
        ({"sampling": "poisson", "sample_rate": 0.5}, "16x16 t=uniform B=1 poisson q=0.5"),
        ({"optimiser": "adamw", "eps": 1e-6}, "16x16 t=uniform B=1 adamw lr=0.01 eps=1e-06"),
        ({"eps": 1e-6, "precision": "float16"}, "16x16 t=uniform B=1 sends float16 update"),
        ({"message": "weights", "max_norm": 1}, "16x16 t=uniform B=1 lr=0.01 max_norm=1 sends float32 weights"),
    ],
)
def test_a_scenario_is_named_by_all_that_is_not_the_plain_case(registry, fields, expected):
    cell = plan(changed(scenarios=(Scenario(**fields),)), registry, "cpu")[-1]
    assert label(cell.scenario.record) == expected
    assert f" · {expected} · " in cell.name


def test_labels_do_not_name_random_streams(registry):
    (one,) = [c.keys for c in plan(changed(defenses=("dp_sgd",)), registry, "cpu") if c.attack_label == "dlg"]
    (other,) = [c.keys for c in plan(changed(defenses=("dp_sgd[clip=1.0]",)), registry, "cpu") if c.attack_label == "dlg"]
    assert one == other


def test_the_number_of_threads_is_part_of_the_identity(registry, monkeypatch):
    before = identities(BASE, registry)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert identities(BASE, registry)["dlg", "none", 0] != before["dlg", "none", 0]


def test_the_kind_of_device_is_part_of_the_identity_but_not_its_number(registry):
    names = [identities(BASE, registry, device)["dlg", "none", 0] for device in ("cpu", "cuda:0", "cuda:1")]
    assert names[0] != names[1] == names[2]


def test_what_cannot_change_the_answer_does_not(registry):
    before = identities(BASE, registry)
    after = identities(changed(title="other", trials=2, attacks=("inverting_gradients", "dlg")), registry)
    assert all(after[key] == identity for key, identity in before.items())


def test_changed_pictures_are_another_cell(registry, tmp_path):
    for i in range(6):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"{i}.png")
    grid = changed(datasets=(f"folder:{tmp_path}",), victims=1)
    before = identities(grid, registry)["dlg", "none", 0]
    Image.new("RGB", (16, 16), (99, 0, 0)).save(tmp_path / "0.png")
    assert identities(grid, registry)["dlg", "none", 0] != before


@pytest.fixture
def pictures(tmp_path):
    """Two folders with the same images, under other names in the second."""
    rng = np.random.default_rng(0)
    for i in range(10):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for folder, name in (("one", f"img{i}.png"), ("com,ma [2]", f"{9 - i}.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / name)
    return tmp_path


def test_the_images_name_the_streams_and_not_the_place_where_they_lie(registry, pictures, monkeypatch):  # F4
    monkeypatch.chdir(pictures)
    places = (f"folder:{pictures / 'one'}", "folder:one", "folder:./one/", f"folder:{pictures / 'com,ma [2]'}")
    cells = [plan(changed(datasets=(place,), victims=3), registry, "cpu")[-1] for place in places]
    assert len({cell.keys for cell in cells}) == len({cell.identity for cell in cells}) == 1
    first, last = ([victim.images for victim in play(cell)[0]] for cell in (cells[0], cells[-1]))
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_a_path_that_exists_is_taken_whole(registry, pictures, monkeypatch):  # F16
    monkeypatch.chdir(pictures)
    (pictures / "mod,el").mkdir()
    assert split("photos,folder:com,ma [2],faces") == ["photos", "folder:com,ma [2]", "faces"]
    assert split(f"tiny,{pictures}/mod,el,small") == ["tiny", f"{pictures}/mod,el", "small"]
    assert parse_one("folder:com,ma [2]").name == "folder:com,ma [2]"
    (spec,) = expand([f"{pictures}/mod,el[steps=10]"])
    assert (spec.name, spec.params) == (f"{pictures}/mod,el", (("steps", "10"),))
    assert split("folder:com,ma") == ["folder:com", "ma"], "it does not exist"
    (pictures / "tiny,small").touch()
    assert split("tiny,small,./m") == ["tiny", "small", "./m"], "without a slash a name is no path"


def test_what_was_passed_over_is_remarked(registry, pictures):  # F6
    (pictures / "one" / "notes.txt").write_text("no image")
    cell = plan(changed(datasets=(f"folder:{pictures / 'one'}",), victims=1), registry, "cpu")[-1]
    assert len(cell.remarks) == 1 and "1 of 11 files" in cell.remarks[0]


MANY = ",".join(map(str, range(1, 102)))

GOOD = {
    "title": "t",
    "datasets": ["photos"],
    "models": ["tiny"],
    "defenses": ["none"],
    "attacks": ["dlg"],
    "scenarios": [{"image_size": 16, "batch_size": 2, "local_steps": 1, "clients": 1, "timesteps": [1, 2]}],
}


@given(st.sampled_from(sorted(GOOD)), st.sampled_from([[], None, 3, "x", {"a": 1}, [[1]], ""]))
def test_a_damaged_file_is_a_good_grid_or_one_sentence(key, value):
    try:
        built = grids.config.build(Grid, {**GOOD, key: value}, "grid")
        plan(built, Registry(), "cpu")
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"atacks": ["dlg"]}, "unknown field of grid .*'atacks'; did you mean 'attacks'"),
        ({"scenarios": [{"timestep": 5}]}, "did you mean 'timesteps'"),
        ({"scenarios": [{"timesteps": 1000}]}, "from 0 to 999"),
        ({"scenarios": [{"timesteps": [1, 2]}]}, "one for each of an update's 1 images, not 2"),
        ({"scenarios": [{"local_lr": 0}]}, "local_lr must be at least 1e-20"),
        ({"scenarios": [{"local_lr": float("inf")}]}, "local_lr must be at least 1e-20 and finite"),
        ({"scenarios": [{"order": "unknown"}]}, "a single batch has no order"),
        ({"scenarios": [{"order": "hidden", "clients": 2}]}, "unknown .*order"),
        ({"scenarios": [{"local_steps": 2, "sampling": "poisson"}]}, "need 'sampling: fixed'"),
        ({"scenarios": [{"clients": 2, "sampling": "poisson"}]}, "need 'sampling: fixed'"),
        (
            {"scenarios": [{"clients": 2, "local_steps": 2, "timesteps": [1, 2]}]},
            "update's 4 images, not 2",
        ),
        ({"scenarios": [{"image_size": 33}]}, "side is a multiple of 2, not 33x33"),
        ({"parts": [{"title": "x"}]}, "a part has no 'title'"),
        ({"parts": [{"victims": "few"}]}, "part 1: victims should be a whole number"),
        ({"parts": [{"attacks": ["dgl"]}]}, "did you mean 'dlg'"),
        ({"parts": [{"victims": 0}]}, "part 1: victims must be at least 1, not 0"),  # T1, this one and the next four
        ({"parts": [{}, {"trials": 0}]}, "part 2: trials must be at least 1, not 0"),
        ({"parts": [{"evaluations": 0}]}, "part 1: evaluations must be at least 1, not 0"),
        ({"parts": [{"attacks": []}]}, "part 1: attacks is empty"),
        ({"parts": [{"scenarios": [{"batch_size": 0}]}]}, "batch_size must be at least 1"),
        ({"defenses": ["dp_sgd[clip=inf]"], "parts": [{"defenses": ["none"]}]}, "clip must be above 0 and finite"),
        ({"trials": 10**9}, "5000000000 cells; at most 100000 can be run at once"),  # T2, this one and the next five
        ({"attacks": [f"dlg[evaluations={MANY},restarts={MANY}]"]}, "more than 10000 values"),
        ({"attacks": ["dlg[evaluations=" + "1" * 10_001 + "]"]}, "more than 10000 characters"),
        ({"victims": 20_000}, "draws 20000 private images; at most 10000 can be drawn"),
        ({"scenarios": [{"batch_size": 10**6}]}, "at most 100000 images may lie behind an update"),
        ({"victims": 9_999, "scenarios": [{"image_size": 1024}]}, "images of 1024x1024 pixels of a cell need .* GiB"),
        ({"scenarios": [{"sampling": "poisson", "sample_rate": 1e-300}]}, "at most 10000000, not 1e"),
        ({"set": {"attack.gidm.preset": float("nan")}}, "attack.gidm.preset.*nan"),  # T5, though gidm is not in the grid
        ({"set": {"attack.adam_l2.lr": float("nan")}}, "lr must be above 0 and finite, not nan"),
        ({"seed": 10**17, "success_db": 1e9}, "success_db must be from -1000 to 1000"),
        ({"scenarios": [{"sample_rate": 0.5}]}, "poisson"),
        ({"scenarios": [{"sample_rate": 1.5}]}, "at most 1"),
        ({"scenarios": [{"batch_size": 0}]}, "at least 1"),
        ({"attacks": ["dgl"]}, "unknown attack 'dgl'; did you mean 'dlg'"),
        ({"attacks": ["dlg[restart=2]"]}, "did you mean 'restarts'"),
        ({"attacks": ["dlg[restarts=0]"]}, "restarts must be at least 1"),
        ({"attacks": ["dlg[restarts=4,evaluations=3]"]}, "restarts must be from 1 to evaluations"),
        ({"defenses": ["gradient_pruning[keep=0]"]}, "keep must be above 0"),
        ({"defenses": ["gradient_pruning[keep=nan]"]}, "keep must be above 0"),
        ({"defenses": ["dp_sgd[delta=1]"]}, "delta must be at least 1e-12 and below 1"),
        ({"datasets": ["folder"]}, "needs 'path'"),
        ({"datasets": ["photos:here"]}, "takes nothing after a colon"),
        ({"datasets": ["folder:/nowhere/at/all"]}, "does not exist"),
        ({"victims": 0}, "victims must be at least 1"),
        ({"set": {"attack.dgl.x": 1}}, "did you mean 'dlg'"),
        ({"set": {"dlg.x": 1}}, "attack.NAME.FIELD"),
        ({"set": {"attack.dlg.restart": 1}}, "did you mean 'restarts'"),
        ({"attacks": []}, "attacks is empty"),
        ({"set": {"attack.inverting_gradients.lrr": 1}}, "did you mean 'lr'"),
        ({"success_db": float("nan")}, "success_db must be from -1000 to 1000, not nan"),
        ({"datasets": ["folder:"]}, "the path is empty"),
        ({"scenarios": [{"batch_size": 3, "sampling": "poisson", "sample_rate": 0.4}]}, "must be whole, not 7.5"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(change, words, tmp_path, registry):
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "scenarios": [{}], **change}))
    with pytest.raises(UserError, match=words) as error:
        plan(read_grid(str(path)), registry, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "words"), [("defalt", "did you mean 'default'"), ("no.yaml", "grid: cannot read no.yaml")])
def test_a_grid_that_is_not_there(name, words):
    with pytest.raises(UserError, match=words):
        read_grid(name)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\t"])
def test_a_file_that_is_no_grid(tmp_path, text):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_grid(str(path))
    assert "\n" not in str(error.value)


def test_parts_are_crossed_by_themselves_and_share_what_they_do_not_name():
    parts = ({"defenses": ["none"], "evaluations": 3}, {"scenarios": [{"image_size": 32, "timesteps": 7}], "victims": 2})
    grid = grids.config.build(Grid, {**GOOD, "parts": parts}, "grid")
    attacked = [cell for cell in plan(grid, Registry(), "cpu") if not cell.control]
    whole = [cell for cell in plan(grids.config.build(Grid, GOOD, "grid"), Registry(), "cpu") if not cell.control]
    assert {cell.budget for cell in attacked if cell.scenario.image_size == 16} == {3}
    second = [cell for cell in attacked if cell.scenario.image_size == 32]
    assert len(second) == len(whole) and {cell.victims for cell in second} == {2}


def test_two_parts_may_not_ask_for_one_row_with_different_budgets():
    grid = grids.config.build(Grid, {**GOOD, "parts": [{"evaluations": 3}, {"evaluations": 4}]}, "grid")
    with pytest.raises(UserError, match="different budgets"):
        plan(grid, Registry(), "cpu")
