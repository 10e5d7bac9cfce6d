"""Tests of the practice of real clients: epochs, kept states, accumulation, augmentation, dropout, loss weights, averages."""

import collections
import copy
import dataclasses

import pytest
import torch
from torch import nn

from benchmark.attacks.dlg import DLG
from benchmark.base.errors import UserError
from benchmark.base.practice import Message
from benchmark.base.seeds import stream
from benchmark.clients.local_data import augmented
from benchmark.clients.toy import PlainDefense, toy
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.diffusion.local_training import dropout
from benchmark.diffusion.loss import parameter_gradient, training_loss
from benchmark.diffusion.process import STRAIGHT, VARIANCE_PRESERVING, Process
from benchmark.evaluation.judge import judge
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.matching.problem import CleanGuess, NoisyGuess, Updates, choose_backend, unrolls_local_steps
from benchmark.registry import Registry
from benchmark.scenario import Scenario, label
from tests.scenes import check, play


def update_of(scene):
    return scene.observe(PlainDefense()).update


def relative(update, reference):
    a, b = (torch.cat([value.flatten() for value in one.values()]).double() for one in (update, reference))
    return float((a - b).norm() / b.norm())


def gradient(scene, network, victim, places):
    batch = (victim.images[places], victim.timesteps[places], victim.noise[places])
    return parameter_gradient(network, training_loss(network, scene.schedule, *batch))


def cells(*scenarios):
    grid = Grid("title", ("photos",), ("tiny",), ("none",), ("dlg",), scenarios=scenarios, evaluations=3, victims=1)
    return [cell for cell in plan(grid, Registry(), "cpu") if cell.attack_label == "dlg"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epochs": 2}, "epochs need 'client_images'"),
        ({"client_images": 6, "batch_size": 4}, "client_images must be a multiple of the batch size 4, not 6"),
        ({"client_images": 8, "batch_size": 4, "local_steps": 3}, "has 2 local steps, so local_steps cannot be 3"),
        ({"client_images": 4, "batch_size": 4, "sampling": "poisson"}, "client_images need 'sampling: fixed'"),
        ({"state": "kept", "optimiser": "adam"}, "'state: kept' needs a round above 1"),
        ({"state": "kept", "optimiser": "adam", "round": 10**6}, "at most 100000 images may lie behind kept states"),
        ({"accumulation": 2}, "accumulation must divide the batch size 1, and 2 does not"),
        ({"accumulation": 2, "batch_size": 4, "sampling": "poisson"}, "accumulation needs 'sampling: fixed'"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"ema": 1.0}, "ema must be"),
        ({"min_snr": 0.0}, "min_snr must be"),
    ],
)
def test_contradictions_are_one_sentence(fields, says):
    with pytest.raises(ValueError, match=says):
        Scenario(**fields)


def test_one_epoch_is_as_many_local_steps_with_the_same_draws():
    one, steps = (toy(batch=2, timesteps="uniform", **f) for f in ({"client_images": 6}, {"local_steps": 3}))
    assert one.scenario.local_steps == 3
    assert relative(update_of(one), update_of(steps)) == 0
    epoch, local = Scenario(batch_size=4, client_images=16), Scenario(batch_size=4, local_steps=4)
    assert len(cells(epoch, local)) == 1


def test_later_epochs_use_the_same_images_in_another_order_with_new_draws():
    scene = toy(batch=2, clients=2, client_images=6, epochs=3, timesteps="uniform", size=8)
    victim, steps = scene.victim, scene.scenario.local_steps
    assert (steps, len(victim.images)) == (9, 36)
    for client in (victim.sources[:18], victim.sources[18:]):
        epochs = [client[first : first + 6] for first in (0, 6, 12)]
        assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == 6 for epoch in epochs)
        assert len(set(epochs)) == 3
    assert set(collections.Counter(victim.sources).values()) == {3}
    same = [place for place, source in enumerate(victim.sources) if source == victim.sources[0]]
    assert all(torch.equal(victim.images[place], victim.images[0]) for place in same)
    assert len({float(victim.noise[place].sum()) for place in same}) == 3
    observation = scene.observe(PlainDefense())
    assert (observation.local_steps, observation.image_count) == (9, 36)
    truth = CleanGuess(victim.images[None], victim.timesteps[None], victim.noise[None])
    found = {name: value[0].detach() for name, value in Updates(observation, choose_backend(observation))(truth).items()}
    assert relative(found, observation.update) < 1e-5


def test_a_cell_of_two_epochs_draws_each_image_once_and_counts_each_use():
    (cell,) = cells(Scenario(batch_size=2, client_images=4, epochs=2))
    check([cell])
    (victim,), (observation,) = play(cell)
    assert len(set(victim.sources)) == 4 and len(victim.images) == observation.image_count == 8


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "amsgrad"])
def test_a_kept_state_is_that_of_torch_after_earlier_steps_at_the_same_weights(optimiser):
    practice = {"optimiser": optimiser, "local_lr": 1e-3, "weight_decay": 0.1, "max_norm": 0.5, "batch": 1, "local_steps": 2}
    scene = toy(state="kept", round=3, **practice)
    kind = torch.optim.AdamW if optimiser == "adamw" else torch.optim.Adam
    network, start = copy.deepcopy(scene.network), dict(scene.network.named_parameters())
    torch_optimiser = kind(network.parameters(), lr=1e-3, weight_decay=0.1, amsgrad=optimiser == "amsgrad")
    (history,), (private,) = scene.round().history, [scene.victim]
    assert len(history.images) == 4 and not set(history.images.flatten().tolist()) & set(private.images.flatten().tolist())
    for number, (victim, place) in enumerate([*((history, k) for k in range(4)), *((private, k) for k in range(2))]):
        for name, value in gradient(scene, network, victim, slice(place, place + 1)).items():
            network.get_parameter(name).grad = value
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        torch_optimiser.step()
        if number < 4:
            network.load_state_dict(scene.network.state_dict())
    update = update_of(scene)
    for name, value in network.named_parameters():
        torch.testing.assert_close(2e-3 * update[name], start[name].detach() - value.detach(), rtol=1e-3, atol=1e-7)
    assert relative(update, update_of(toy(**practice))) > 0.1


def test_a_kept_state_of_sgd_or_of_a_fresh_round_is_no_other_cell():
    scenarios = [Scenario(state="kept", round=2), Scenario(round=2), Scenario()]
    assert len(cells(*scenarios)) == 1
    kept = {"optimiser": "adam", "state": "kept"}
    found = cells(Scenario(optimiser="adam"), Scenario(**kept, round=2), Scenario(**kept, round=3))
    assert len({cell.identity for cell in found}) == 3 and len({cell.keys.scenario for cell in found}) == 1
    updates = [play(cell)[1][0].update for cell in found]
    assert relative(updates[0], updates[1]) > 0.1 < relative(updates[1], updates[2])


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    whole, parts = toy(batch=4), toy(batch=4, accumulation=2)
    sizes = []
    handle = parts.network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    update = update_of(parts)
    handle.remove()
    assert sizes == [2, 2]
    assert relative(update, update_of(whole)) < 1e-6


@pytest.mark.parametrize("kind", ["flip", "flip_crop"])
def test_images_are_judged_as_they_were_used_and_draws_stay(kind):
    plain, changed = (toy(batch=12, size=16, timesteps="uniform", augment=augment) for augment in ("none", kind))
    assert torch.equal(plain.victim.timesteps, changed.victim.timesteps)
    assert torch.equal(plain.victim.noise, changed.victim.noise)
    border = 2 if kind == "flip_crop" else 0
    framed = nn.functional.pad(plain.victim.images, [border] * 4, value=-1.0)
    seen = set()
    for image, before in zip(changed.victim.images, framed, strict=True):
        windows = {
            (flip, top, left): torch.equal(image, window.flip(-1) if flip else window)
            for top in range(2 * border + 1)
            for left in range(2 * border + 1)
            for flip in (False, True)
            for window in [before[:, top : top + 16, left : left + 16]]
        }
        assert sum(windows.values()) == 1
        seen.add(next(window for window, same in windows.items() if same))
    assert {flip for flip, _, _ in seen} == {False, True} and (len(seen) > 4) == (kind == "flip_crop")
    assert relative(update_of(changed), changed.step().gradient()) == 0


def test_augmented_cells_share_images_timesteps_and_noise():
    (plain, _), (flipped, _) = map(play, cells(Scenario(batch_size=4), Scenario(batch_size=4, augment="flip")))
    assert torch.equal(plain[0].noise, flipped[0].noise) and torch.equal(plain[0].timesteps, flipped[0].timesteps)
    assert plain[0].sources == flipped[0].sources and not torch.equal(plain[0].images, flipped[0].images)
    assert torch.equal(augmented(plain[0], "none", torch.Generator()).images, plain[0].images)


def test_dropout_masks_the_share_that_it_says_and_leaves_no_trace():
    layer = nn.Sequential(nn.Dropout(0.0)).eval()
    with dropout(layer, 0.25, stream(0, "masks")):
        dropped = layer(torch.ones(100_000))
    assert sorted(set(dropped.tolist())) == [0.0, pytest.approx(4 / 3)]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(layer(torch.ones(10)), torch.ones(10))
    with pytest.raises(UserError, match="none"), dropout(nn.Identity(), 0.1, stream(0, "masks")):
        pass


@pytest.mark.parametrize("defense", [PlainDefense(), DPSGD(clip=1e3, noise_multiplier=0.0)])
def test_clients_drop_and_the_attacker_does_not(defense):
    plain, dropping = toy(batch=2, local_steps=2), toy(batch=2, local_steps=2, dropout=0.2)
    observation = dropping.observe(defense)
    assert observation.dropout == 0.2
    assert 0.01 < relative(observation.update, plain.observe(defense).update) < 2
    again = dropping.observe(defense)
    assert relative(again.update, observation.update) == 0, "the masks come from the defense's stream"
    batch = (plain.victim.images, plain.victim.timesteps)
    assert torch.equal(observation.network(*batch), plain.network(*batch))


def test_parameters_that_are_trained_but_not_sent_move_the_others():
    practice = {"batch": 1, "local_steps": 2, "local_lr": 0.5}
    scene, whole = toy(**practice, sent_parameters="time_emb"), update_of(toy(**practice))
    observation, victim = scene.observe(PlainDefense()), scene.victim
    assert set(observation.update) == {name for name in whole if "time_emb" in name}
    sent = {name: whole[name] for name in observation.update}
    assert relative(observation.update, sent) == 0
    truth = CleanGuess(victim.images[None], victim.timesteps[None], victim.noise[None])
    found = {name: value[0].detach() for name, value in Updates(observation, choose_backend(observation))(truth).items()}
    assert relative(found, sent) < 1e-5
    others = [name for name, _ in scene.network.named_parameters() if "time_emb" not in name]
    frozen = dataclasses.replace(scene, network=copy.deepcopy(scene.network))
    for name in others:
        frozen.network.get_parameter(name).requires_grad_(False)
    assert relative(update_of(frozen), sent) > 1e-3, "frozen layers are another practice"
    with pytest.raises(UserError, match="no trained parameter of the model has 'layer x' in its name"):
        check(cells(Scenario(sent_parameters="layer x")))


def snr(process, t):
    return float(process.signal[t] ** 2 / process.noise[t] ** 2)


@pytest.mark.parametrize(
    ("target", "path", "expected"),
    [
        ("epsilon", VARIANCE_PRESERVING, lambda snr: min(snr, 5) / snr),
        ("v_prediction", VARIANCE_PRESERVING, lambda snr: min(snr, 5) / (snr + 1)),
        ("sample", VARIANCE_PRESERVING, lambda snr: min(snr, 5)),
    ],
)
def test_loss_weights_are_those_of_the_paper(target, path, expected):
    process = Process(torch.linspace(0.999, 0.01, 50), path, target, torch.arange(50), min_snr=5.0)
    t = torch.arange(50)
    torch.testing.assert_close(process.loss_weight(t), torch.tensor([expected(snr(process, k)) for k in range(50)]))
    assert torch.equal(dataclasses.replace(process, min_snr=None).loss_weight(t), torch.ones(50))


def test_the_weight_of_a_velocity_on_the_straight_path_is_that_of_the_image_it_implies():
    process = Process(torch.linspace(0.01, 0.99, 50), STRAIGHT, "flow_prediction", torch.arange(50), min_snr=5.0)
    t, draw = torch.arange(50), stream(0, "weights")
    x_0, eps, error = (torch.randn(50, 1, 4, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    implied, _ = process.denoised(process.add_noise(x_0, t, eps), t, process.target(x_0, t, eps) + error)
    of_images = (implied - x_0).square().flatten(1).mean(1) / error.square().flatten(1).mean(1)
    limited = torch.tensor([min(snr(process, k), 5) for k in range(50)]).double()
    torch.testing.assert_close(process.loss_weight(t).double(), limited * of_images, rtol=1e-4, atol=1e-7)


def test_the_weighted_gradient_is_the_weighted_mean_and_the_engine_computes_it():
    scene = toy(batch=3, timesteps=(20, 100, 700), min_snr=5.0)
    plain, victim = dataclasses.replace(scene.schedule, min_snr=None), scene.victim
    weights = scene.schedule.loss_weight(victim.timesteps)
    assert float(weights.min()) < 0.5 < float(weights.max())
    each = [gradient(dataclasses.replace(scene, schedule=plain), scene.network, victim, slice(k, k + 1)) for k in range(3)]
    mean = {name: sum(w * one[name] for w, one in zip(weights, each, strict=True)) / 3 for name in each[0]}
    observation = scene.observe(PlainDefense())
    assert relative(observation.update, mean) < 1e-5
    with torch.no_grad():
        x_t = plain.add_noise(victim.images, victim.timesteps, victim.noise)
        residual = scene.network(x_t, victim.timesteps) - victim.noise
    for guess in (
        CleanGuess(victim.images[None], victim.timesteps[None], victim.noise[None]),
        NoisyGuess(x_t[None], victim.timesteps[None], residual[None]),
    ):
        found = Updates(observation, choose_backend(observation))(guess)
        assert relative({name: value[0].detach() for name, value in found.items()}, mean) < 1e-5


def test_loss_weights_do_not_stop_an_attack_that_knows_them():
    weighted, plain = toy(batch=1, min_snr=0.2), toy(batch=1)
    observations = [weighted.observe(PlainDefense()), plain.observe(PlainDefense())]
    ignorant = dataclasses.replace(observations[0], schedule=observations[1].schedule)
    found = []
    for observation in (*observations, ignorant):
        rebuilt = DLG(evaluations=60).run([observation], stream(0, "attack"))
        (sample,) = judge([plain.victim], rebuilt, 30)
        found.append(sample.measured["psnr"])
    assert abs(found[0] - found[1]) < 6 and found[2] < found[0] - 6, found


@pytest.mark.parametrize("message", ["update", "weights"])
def test_the_average_of_weights_is_that_of_a_loop(message):
    scene = toy(batch=1, local_steps=3, local_lr=0.1, ema=0.9, message=message)
    network, start = copy.deepcopy(scene.network), dict(scene.network.named_parameters())
    average = {name: value.detach().double() for name, value in start.items()}
    for k in range(3):
        for name, value in gradient(scene, network, scene.victim, slice(k, k + 1)).items():
            with torch.no_grad():
                network.get_parameter(name).sub_(0.1 * value)
                average[name] = 0.9 * average[name] + 0.1 * network.get_parameter(name).double()
    observation = scene.observe(PlainDefense())
    expected = {name: (start[name].detach() - average[name]) / (0.1 * (0.1 + 0.19 + 0.271)) for name in start}
    assert relative(observation.update, expected) < 1e-4
    assert not unrolls_local_steps(observation)


def test_steps_of_one_gradient_move_the_average_by_the_gain():
    theta, average = 0.0, 0.0
    for step in range(1, 6):
        theta += 1.0
        average = 0.8 * average + 0.2 * theta
        assert Message(ema=0.8).gain(step) == pytest.approx(average)
    assert Message().gain(5) == 5


def test_practice_keeps_the_draws_and_has_its_own_label_and_identity():
    changes = ({"dropout": 0.1}, {"min_snr": 5.0}, {"ema": 0.9}, {"augment": "flip_crop"}, {"sent_parameters": "conv"}, {})
    found = cells(*(Scenario(batch_size=2, **change) for change in changes))
    assert len({cell.identity for cell in found}) == len({label(cell.scenario.record) for cell in found}) == len(changes)
    assert len({cell.keys.scenario for cell in found}) == 1
    names = [label(cell.scenario.record) for cell in found]
    assert names[0] == "16x16 t=uniform B=2 dropout=0.1" and names[2] == "16x16 t=uniform B=2 lr=0.01 ema=0.9"
    assert names[3:5] == ["16x16 t=uniform B=2 flip_crop", "16x16 t=uniform B=2 only conv"]
