"""Tests of training: the loss falls, a resumed training ends with the same weights, and the result can be used as a model."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmark.base.environment import describe
from benchmark.base.errors import UserError
from benchmark.base.interrupts import Interrupted
from benchmark.base.spec import parse_one
from benchmark.cli import main
from benchmark.clients.toy import toy
from benchmark.datasets.folder import Folder
from benchmark.datasets.photos import Photos
from benchmark.diffusion.models import build_network, resolve_model
from benchmark.diffusion.training import Recipe, Training, fingerprint, train
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def less_of_everything(monkeypatch):
    """64 images instead of 8,192, and a sample sheet in 2 steps, keep the tests short."""
    monkeypatch.setattr("benchmark.datasets.photos.TRAINING_CROPS", 64)
    monkeypatch.setattr("benchmark.diffusion.training.SHEET_STEPS", 2)


def run(out, steps, *more):
    words = ["--dataset", "photos", "--model", "tiny", "--batch-size", "4", "--lr", "1e-3", "--out", str(out)]
    return main(["train", *words, "--steps", str(steps), *more])


@pytest.fixture
def training():
    scene = toy(size=16)
    images = Photos().training(16)
    recipe = Recipe("photos", len(images), fingerprint(images), "", "toy", "linear", "here", batch_size=8, lr=3e-3)
    return Training(recipe, scene.network, scene.schedule, images)


def test_the_loss_falls(training):
    training.advance()
    first = training.loss
    for _ in range(60):
        training.advance()
    assert training.step == 61 and training.loss < 0.9 * first


def test_a_break_changes_nothing(tmp_path):
    assert run(tmp_path / "whole", 6) == 0
    assert run(tmp_path / "broken", 4) == 0
    assert run(tmp_path / "broken", 6) == 0
    whole, broken = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    short = run(tmp_path / "short", 4)
    assert short == 0 and not torch.equal(load_file(tmp_path / "short" / WEIGHTS)["conv_in.weight"], whole["conv_in.weight"])


def test_a_break_by_the_user_keeps_the_steps_taken(training, tmp_path):
    def stop(state):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(training, 10, tmp_path, 100, stop)
    again = Training(training.recipe, toy(size=16).network, training.schedule, training.images)
    again.load(tmp_path)
    assert again.step == training.step == 3


def test_what_it_leaves_is_a_model_with_a_card(tmp_path, capsys):
    assert run(tmp_path / "out", 3) == 0
    assert "[3/3] loss" in capsys.readouterr().out
    model = resolve_model(parse_one(str(tmp_path / "out")))
    assert (model.image_size, model.state, model.prior_label) == (16, "trained 3 steps", "self")
    build_network(model, 0)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["dataset"], card["steps"], card["seed"], card["images"]) == ("photos", 3, 0, 64)
    assert card["command"].startswith("python -m benchmark train --dataset photos --model tiny --steps 3")
    assert card["environment"]["torch"] == describe("cpu")["torch"]
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000


def test_the_published_weights_are_the_average_not_the_last(training, tmp_path):
    from benchmark.diffusion.conventions import Convention
    from benchmark.diffusion.training import publish

    for _ in range(5):
        training.advance()
    last = {name: p.clone() for name, p in training.network.unet.named_parameters()}
    publish(training, Convention().scheduler(), tmp_path, {})
    saved = load_file(tmp_path / WEIGHTS)
    average = dict(zip(last, training.average.shadow_params, strict=True))
    assert all(torch.equal(saved[name], average[name]) for name in last)
    assert not torch.equal(saved["conv_in.weight"], last["conv_in.weight"])
    assert all(torch.equal(p, last[name]) for name, p in training.network.unet.named_parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps must be from 1 to"),
        (["--batch-size", "0"], "--batch-size must be from 1 to 100000, not 0"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--lr", "1e38"], "at most 1"),
        (["--model", "tinny"], "did you mean 'tiny'"),
        (["--dataset", "fotos"], "did you mean 'photos'"),
        (["--dataset", "cifar10:/no/such/place"], "there is no folder"),
    ],
)
def test_mistakes_are_one_sentence(words, message, tmp_path, capsys):
    assert run(tmp_path / "out", 2, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_another_training_in_the_same_place_is_refused(tmp_path, capsys):
    assert run(tmp_path / "out", 2) == 0
    assert run(tmp_path / "out", 2, "--seed", "1") == 2
    assert "another" in capsys.readouterr().err
    assert run(tmp_path / "out", 1) == 2
    assert "2 steps already" in capsys.readouterr().err


def test_a_model_without_its_training_is_not_written_over(tmp_path, capsys):
    assert run(tmp_path, 2) == 0
    (tmp_path / "training.pt").unlink()
    before = (tmp_path / WEIGHTS).read_bytes()
    assert run(tmp_path, 3) == 2
    assert "choose another --out" in capsys.readouterr().err and (tmp_path / WEIGHTS).read_bytes() == before


def test_a_damaged_state_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path / "out", 2) == 0
    (tmp_path / "out" / "training.pt").write_bytes(b"nothing")
    assert run(tmp_path / "out", 3) == 2
    assert "cannot continue from" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_it_and_keeps_what_was_saved(training, tmp_path):
    train(training, 2, tmp_path, 1, lambda _: None)
    before = (tmp_path / "training.pt").read_bytes()
    training.images = torch.full_like(training.images, float("nan"))
    with pytest.raises(UserError, match="smaller --lr"):
        train(training, 5, tmp_path, 1, lambda _: None)
    assert (tmp_path / "training.pt").read_bytes() == before


def test_the_same_command_again_leaves_the_card_as_it_was(tmp_path, monkeypatch):
    assert run(tmp_path, 2) == 0
    before = (tmp_path / "card.json").read_text()
    monkeypatch.setenv("LD_PRELOAD", "")
    assert run(tmp_path, 2) == 0
    assert (tmp_path / "card.json").read_text() == before


def test_a_model_that_was_trained_on_remembers_where_it_came_from(tmp_path):
    assert run(tmp_path / "first", 3) == 0
    assert run(tmp_path / "second", 2, "--model", str(tmp_path / "first"), "--dataset", "faces") == 0
    model = resolve_model(parse_one(str(tmp_path / "second")))
    assert model.state == "trained 5 steps"
    assert [data.dataset for data in model.trained_on()] == ["faces", "photos"]


def test_a_prior_trained_on_other_files_of_the_same_data_set_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    assert run(tmp_path / "model", 2, "--dataset", f"folder:{folder}") == 0
    grid = Grid("t", (f"folder:{folder}",), (str(tmp_path / "model"),), ("none",), ("dlg",), victims=1)
    assert plan(grid, Registry(), "cpu")
    public = Folder(path=str(folder)).public(16)
    (folder / public[0].source).unlink()  # those after it change sides
    with pytest.raises(UserError, match="trained on 2 of the 8 images that are victims"):
        plan(grid, Registry(), "cpu")


def test_a_model_trained_on_other_images_meets_victims_that_it_never_saw(tmp_path):  # F13
    rng = np.random.default_rng(0)
    for name in ("public", "private"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    assert run(tmp_path / "model", 2, "--dataset", f"folder:{tmp_path / 'public'}") == 0
    victims = f"folder:{tmp_path / 'private'}"
    assert plan(Grid("t", (victims,), (str(tmp_path / "model"),), ("none",), ("dlg",), victims=1), Registry(), "cpu")


def test_the_model_is_usable_before_its_sample_sheet_is_drawn(tmp_path, monkeypatch, capsys):  # R11
    def interrupted(*arguments):
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("benchmark.diffusion.training.ddim", interrupted)
        assert run(tmp_path, 2) == 130
    assert build_network(resolve_model(parse_one(str(tmp_path))), 0) and not (tmp_path / "samples.png").exists()
    assert run(tmp_path, 2) == 0
    printed = capsys.readouterr().out
    assert printed.index("Model and card") < printed.index("row 1 of 8") < printed.index("row 8 of 8")
    assert (tmp_path / "samples.png").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_the_steps_taken_and_says_how_to_go_on(tmp_path, number, monkeypatch, capsys):  # R3
    advance = Training.advance

    def signalled(self):
        advance(self)
        if self.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Training, "advance", signalled)
    before = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        assert run(tmp_path, 10) == 128 + number
    finally:
        signal.signal(number, before)
    assert "Interrupted at step 3: it is saved" in capsys.readouterr().err


def test_a_file_of_the_user_that_a_model_would_replace_is_refused(tmp_path, capsys):
    (tmp_path / "samples.png").write_text("mine")
    assert run(tmp_path, 2) == 2
    assert "holds a samples.png whose training cannot be continued" in capsys.readouterr().err
    assert (tmp_path / "samples.png").read_text() == "mine"


def test_weights_that_are_not_finite_are_never_saved(training, tmp_path):
    training.save(tmp_path)
    before = (tmp_path / "training.pt").read_bytes()
    next(training.network.parameters()).data.fill_(float("inf"))
    with pytest.raises(UserError, match="smaller --lr"):
        training.save(tmp_path)
    assert (tmp_path / "training.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["training.pt", "unet", "card.json", "samples.png"])
def test_nothing_is_written_through_a_link(tmp_path, name):  # R8
    out, target = tmp_path / "out", tmp_path / "target"
    assert run(out, 1) == 0
    (out / name).rename(target)
    before = sorted(target.iterdir()) if target.is_dir() else target.read_bytes()
    (out / name).symlink_to(target)
    assert run(out, 2) == 0
    assert (sorted(target.iterdir()) if target.is_dir() else target.read_bytes()) == before
    assert not (out / name).is_symlink()
