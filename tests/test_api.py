"""The Python interface: the README's example runs, and mistakes are one sentence."""

import re
from pathlib import Path

import pytest
import torch

import gidbench

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    psnr = float(capsys.readouterr().out.split()[0])
    assert psnr > 30  # what the README calls recovered
    run = names["run"]
    assert set(run.leaderboard.defense) == {"none", "gradient_pruning[keep=0.1]"}
    assert "strongest:dlg" in set(run.leaderboard.attack)
    assert run.images.original.iloc[0].shape == (16, 16, 3)
    again = gidbench.load("my_run")
    assert again.leaderboard.equals(run.leaderboard)
    assert (Path("my_run") / "leaderboard.csv").exists()
    stored = sorted((tmp_path / "my_run").glob("cells/*/record.json"))
    before = [path.stat().st_mtime_ns for path in stored]
    gidbench.run(names["grid"], out="my_run")
    assert [path.stat().st_mtime_ns for path in stored] == before  # nothing ran twice


def test_the_truth_scores_as_the_ceiling_and_several_observations_give_several_answers():
    case = gidbench.simulate(model="tiny", scenario=gidbench.Scenario(batch_size=2))
    truth = gidbench.Reconstruction(case.victim.images.flip(0), evaluations=0)
    assert [sample.measured["psnr"] for sample in case.judge(truth)] == [100.0, 100.0]
    first, second = gidbench.attack([case.observation, case.observation], "random_guess", seed=3)
    alone = gidbench.attack(case.observation, "random_guess", seed=3)
    assert torch.equal(first.images, alone.images) and not torch.equal(first.images, second.images)


def test_a_diagnosis_counts_the_images_and_reads_their_timesteps():
    practice = gidbench.Scenario(batch_size=2, timesteps="uniform")
    case = gidbench.simulate(model="tiny", defense="private_noise_timestep", scenario=practice)
    found = gidbench.diagnose(case.observation)
    assert found.estimated_images == found.images == 2
    assert found.timesteps == tuple(sorted(case.victim.timesteps.tolist())) and not found.timesteps_granted


def test_two_seeds_are_two_updates():
    one, same, other = (gidbench.simulate(model="tiny", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.victim.images, same.victim.images)
    assert not torch.equal(one.victim.noise, other.victim.noise)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gidbench.simulate("photo"), "unknown dataset 'photo'"),
        (lambda: gidbench.simulate(scenario=gidbench.Scenario(clients=2)), "the server receives 2 updates"),
        (lambda: gidbench.attack(gidbench.simulate(model="tiny").observation, "dgl"), "unknown attack 'dgl'"),
        (
            lambda: gidbench.attack(
                gidbench.simulate(model="tiny", defense="private_noise").observation, "inverting_gradients"
            ),
            "attack 'inverting_gradients' needs the noise, which the observation does not grant",
        ),
        (
            lambda: gidbench.run(gidbench.Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",))),
            "this grid has no file name: give the run directory",
        ),
        (lambda: gidbench.load("/nowhere"), "is no run directory"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(gidbench.UserError, match=sentence):
        call()
