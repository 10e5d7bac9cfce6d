"""Defenses that change which weights are trained, at which timesteps, or whose updates are summed."""

import dataclasses

import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.clients.federation import draw_victim
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.lora import LoRA
from benchmark.defenses.timestep_range import TimestepRange
from benchmark.defenses.withhold import Withhold
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.experiment.store import Status
from benchmark.matching.engine import Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.problem import clean_guess
from benchmark.plugins import Picture
from benchmark.registry import Registry
from benchmark.scenario import Scenario
from tests.scenes import check, play, run_cell

GRID = Grid("t", ("photos",), ("tiny",), ("none",), ("dlg",), victims=2, evaluations=2)


def cells(**changes):
    """Return the cells of `dlg` in a changed grid, by defense."""
    planned = plan(dataclasses.replace(GRID, **changes), Registry(), "cpu")
    return {cell.defense_label: cell for cell in planned if cell.attack_label == "dlg"}


def test_timesteps_are_uniform_from_the_least_one_and_keep_their_order():
    toys, pictures = toy(), [Picture(torch.zeros(3, 8, 8), "a")] * 20_000
    practice = Scenario(batch_size=20_000)
    plain, high = (
        draw_victim(pictures, practice, toys.schedule, stream(0, "t"), defense.least_timestep(practice, 1000)).timesteps
        for defense in (PlainDefense(), TimestepRange(least=300))
    )
    counts = torch.bincount(high - 300, minlength=700).double()
    assert len(counts) == 700 and float(((counts - 20_000 / 700) ** 2).sum() * 700 / 20_000) < 850  # chi^2, 699 degrees
    order = plain.argsort()
    assert (high[order].diff() >= -1).all()


def test_a_fixed_timestep_below_the_range_is_refused_before_the_run():
    fixed = (Scenario(timesteps=500),)
    (cell,) = cells(defenses=("timestep_range[least=500]",), scenarios=fixed).values()
    assert [sample.timestep for sample in run_cell(cell).samples] == [500, 500]
    with pytest.raises(UserError, match="trains from t = 501 on, and the scenario fixes t = 500"):
        check(list(cells(defenses=("timestep_range[least=501]",), scenarios=fixed).values()))
    with pytest.raises(UserError, match="below the model's 1000 timesteps"):
        check(list(cells(defenses=("timestep_range[least=1000]",)).values()))


def test_victims_have_the_timesteps_that_were_trained():
    (cell,) = cells(defenses=("timestep_range[least=900]",)).values()
    victims, observations = play(cell)
    for victim, observation in zip(victims, observations, strict=True):
        assert victim.timesteps.min() >= 900 and torch.equal(victim.timesteps, observation.timesteps)


def test_withheld_layers_are_not_sent_and_the_rest_is_unchanged():
    scene = toy()
    whole, rest = scene.observe(PlainDefense()).update, scene.observe(Withhold(layers="time_emb")).update
    assert {name for name in whole if name not in rest} == {name for name in whole if "time_emb" in name} != set()
    assert all(torch.allclose(value, whole[name], rtol=1e-4, atol=1e-7) for name, value in rest.items())


def test_withheld_layers_are_frozen_during_local_steps():
    """For client and attacker: at the true images, the attacker's simulation gives the update that the client sent."""
    scene = toy(batch=1, local_steps=3, local_lr=0.1)
    observation = scene.observe(Withhold(layers="conv_out"))
    (truth,) = match([Task(observation, {"x_0": scene.victim.images}, 1)], clean_guess, squared_distance, lbfgs)
    energy = sum(float(value.square().sum()) for value in observation.update.values())
    assert truth.loss < 1e-8 * energy
    unfrozen = scene.observe(PlainDefense())
    rest = {name: value for name, value in unfrozen.update.items() if name in observation.update}
    assert any(not torch.allclose(value, observation.update[name], rtol=1e-3) for name, value in rest.items())


def test_withholding_no_layer_or_all_is_refused():
    with pytest.raises(ValueError, match="layers must name"):
        Withhold(layers="")
    with pytest.raises(UserError, match="withhold names no layer: no parameter has 'nowhere'"):
        Withhold(layers="nowhere").prepare(toy().network, stream(0, "p"))
    with pytest.raises(UserError, match="leaves nothing to train"):
        Withhold(layers="unet").prepare(toy().network, stream(0, "p"))


def test_new_adapters_change_no_output_and_only_adapters_are_sent():
    scene = toy()
    network = LoRA(rank=2).prepare(scene.network, stream(0, "p"))
    x, t = scene.victim.images, scene.victim.timesteps
    with torch.no_grad():
        assert torch.allclose(network(x, t), scene.network(x, t), atol=1e-6)
    update = scene.observe(LoRA(rank=2)).update
    assert update and all("lora_" in name for name in update)
    first = [value for name, value in update.items() if "lora_A" in name]
    second = [value for name, value in update.items() if "lora_B" in name]
    assert not any(value.any() for value in first) and all(value.any() for value in second)


def test_an_adapters_gradient_follows_from_the_gradient_of_its_weight():
    """B is zero at first. So its gradient is G A^T, where G is the gradient of the adapted weight."""
    scene = toy()
    observation, whole = scene.observe(LoRA(rank=2)), scene.observe(PlainDefense()).update
    for name, value in observation.update.items():
        if "lora_B" in name:
            plain = whole[name.replace("lora_B.default.", "")]
            down = observation.network.get_parameter(name.replace("lora_B", "lora_A"))
            assert torch.allclose(value, plain @ down.T, rtol=1e-3, atol=1e-6)


def test_server_and_client_have_the_same_adapters():
    first, again = (LoRA().prepare(toy().network, stream(0, "p")).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_model_without_attention_cannot_have_adapters():
    network = toy().network
    network.unet.down_blocks[1].attentions = torch.nn.ModuleList()
    network.unet.up_blocks[0].attentions = torch.nn.ModuleList()
    network.unet.mid_block.attentions = torch.nn.ModuleList()
    with pytest.raises(UserError, match="no attention"):
        LoRA().prepare(network, stream(0, "p"))


def test_no_layer_can_be_withheld_before_adapters():
    withheld = Withhold(layers="to_q").prepare(toy().network, stream(0, "p"))
    with pytest.raises(UserError, match="no layer can be withheld before it"):
        LoRA().prepare(withheld, stream(0, "p"))


def test_aggregation_over_one_client_is_no_defense():
    by_defense = cells(defenses=("none", "secure_aggregation"))
    (_, plain), (_, summed) = (play(by_defense[name]) for name in ("none", "secure_aggregation"))
    for a, b in zip(plain, summed, strict=True):
        assert all(torch.equal(value, b.update[name]) for name, value in a.update.items())
        assert a.grants == b.grants and a.image_count == b.image_count


def test_without_aggregation_the_server_receives_every_clients_update():
    practice = (Scenario(clients=3, batch_size=2, timesteps=(10, 20, 30, 40, 50, 60)),)
    by_defense = cells(defenses=("none", "secure_aggregation"), scenarios=practice)
    (apart, single), (together, summed) = (play(by_defense[name]) for name in ("none", "secure_aggregation"))
    assert len(single) == 6 and len(summed) == 2
    assert [observation.image_count for observation in (*single, *summed)] == [2] * 6 + [6] * 2
    for first, whole in zip((0, 3), summed, strict=True):
        for name, value in whole.update.items():
            mean = sum(observation.update[name] for observation in single[first : first + 3]) / 3
            assert torch.allclose(mean, value, rtol=1e-4, atol=1e-7)
    assert torch.equal(torch.cat([victim.images for victim in apart]), torch.cat([victim.images for victim in together]))


def test_images_keep_their_numbers_with_and_without_aggregation():
    practice = (Scenario(clients=2, timesteps=(10, 900)),)
    by_defense = cells(defenses=("none", "secure_aggregation"), scenarios=practice)
    alone, summed = (run_cell(by_defense[name]) for name in ("none", "secure_aggregation"))
    assert alone.record.status == summed.record.status == Status.OK
    for outcome in (alone, summed):
        assert [(s.victim, s.image, s.timestep) for s in outcome.samples] == [(0, 0, 10), (0, 1, 900), (1, 0, 10), (1, 1, 900)]
    assert all((a.original == b.original).all() for a, b in zip(alone.samples, summed.samples, strict=True))


def test_one_update_has_the_practice_of_one_client():
    practice = Scenario(clients=3, local_steps=2, order="unknown", timesteps=(1, 2, 3, 4, 5, 6))
    alone = practice.of_one_client()
    assert (alone.clients, alone.local_steps, alone.order) == (1, 2, "unknown")
    assert dataclasses.replace(practice, local_steps=1, timesteps=7).of_one_client().order == "known"
