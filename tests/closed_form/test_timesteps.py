import dataclasses

import pytest
import torch

from benchmark.attacks.dlg import DLG
from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.closed_form.timesteps import MIN_CONFIDENCE, UnreadableTimesteps, read_timesteps, with_timesteps
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.none import NoDefense
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.defenses.private_timestep import PrivateTimestep

WIDE = (32, 32)


def drawn(count, seed=0):
    return tuple(torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:count].tolist())


def seen_at(timesteps, defense=None, **practice):
    scene = toy(batch=practice.pop("batch", len(timesteps)), channels=WIDE, timesteps=timesteps, **practice)
    return scene.observe(defense or PrivateNoiseTimestep())


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_timesteps_of_a_batch_are_read_to_the_last_one(count, seed):
    timesteps = drawn(count, seed)
    reading = read_timesteps(seen_at(timesteps))
    assert reading.timesteps.tolist() == sorted(timesteps)
    assert reading.confidence > 10 * MIN_CONFIDENCE


def test_neighbours_are_told_apart():
    assert read_timesteps(seen_at((499, 500, 501))).timesteps.tolist() == [499, 500, 501]


def test_a_timestep_that_all_images_share_is_read():
    assert read_timesteps(seen_at((7, 7, 7))).timesteps.tolist() == [7, 7, 7]


@pytest.mark.parametrize("practice", [{"clients": 4}, {"local_steps": 4, "local_lr": 0.1}], ids=["clients", "local steps"])
def test_clients_and_local_steps_keep_the_span(practice):
    """The layer's input depends on no weight, so neither a sum nor a step of training hides it."""
    timesteps = drawn(4)
    assert read_timesteps(seen_at(timesteps, batch=1, **practice)).timesteps.tolist() == sorted(timesteps)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (lambda: seen_at((5, 5, 9)), "some are repeated"),
        (lambda: seen_at(drawn(33)), "too many for a time embedding of width 32"),
        (lambda: seen_at(drawn(24)), "stand out"),
        (lambda: seen_at((200,), DPSGD(noise_multiplier=1.0)), "stand out"),
        (lambda: seen_at(drawn(3), GradientPruning(keep=0.1)), "stand out"),
    ],
    ids=["repeated", "too many", "more than rounding lets through", "noise", "pruning"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(seen, reason):
    with pytest.raises(UnreadableTimesteps, match=reason):
        read_timesteps(seen())


@pytest.mark.parametrize("times", [(200,), (0, 500, 999)])
def test_without_the_first_layer_the_blocks_tell_the_timestep(times):
    """What takes the time embedding up has an input that the server can compute for every timestep."""
    seen = withholding(seen_at(times), "time_embedding")
    assert read_timesteps(seen).timesteps.tolist() == sorted(times)


def test_where_every_layer_with_the_embedding_is_withheld_it_is_refused():
    with pytest.raises(UnreadableTimesteps, match="no layer that takes the time embedding left the client"):
        read_timesteps(withholding(seen_at((200,)), "time_emb"))


@pytest.mark.parametrize("times", [(200,), (0, 500, 999)])
def test_without_biases_the_weights_tell_the_timestep(times):
    assert read_timesteps(withholding(seen_at(times), "bias")).timesteps.tolist() == sorted(times)


def withholding(seen, part):
    return dataclasses.replace(seen, update={name: value for name, value in seen.update.items() if part not in name})


def test_an_attack_that_reads_the_timestep_rebuilds_what_it_does_when_told():
    told, private = (seen_at((300,), defense) for defense in (NoDefense(), PrivateTimestep()))
    attack = DLG(evaluations=5)
    (expected,), (found,) = (attack.run([seen], stream(0, "a")) for seen in (told, private))
    assert torch.equal(expected.images, found.images)
    assert found.timesteps.tolist() == [300] and expected.timesteps is None


def test_only_the_victim_that_cannot_be_read_is_lost():
    observations = [seen_at((300,)), seen_at((300,), DPSGD(noise_multiplier=1.0)), seen_at((20,))]
    hidden = [dataclasses.replace(seen, timesteps=None) for seen in observations]
    lost = [found.diverged is not None for found in DLG(evaluations=2).run(hidden, stream(0, "a"))]
    assert lost == [False, True, False]


def test_where_no_victim_can_be_read_no_attack_is_made():
    hidden = dataclasses.replace(seen_at((300,), DPSGD(noise_multiplier=1.0)), timesteps=None)
    broken = dataclasses.replace(hidden, update={name: value * 0 for name, value in hidden.update.items()})
    found = with_timesteps([hidden, broken], lambda told: pytest.fail("there is nothing to attack"))
    assert "cannot be read" in found[0].diverged and "zero everywhere" in found[1].diverged


def test_a_set_is_of_no_use_beside_noise_that_was_granted_in_an_order():
    (found,) = with_timesteps([seen_at((100, 200), PrivateTimestep())], lambda told: [])
    assert "which of the granted noises" in found.diverged


def test_a_set_read_after_several_local_steps_is_not_taken_for_their_order():
    seen = seen_at((700, 20), batch=1, local_steps=2, local_lr=0.1)
    assert seen.order_known

    def attack(observations):
        (told,) = observations
        assert told.timesteps.tolist() == [20, 700] and not told.order_known
        return DLG(evaluations=1).run(observations, stream(0, "a"))

    assert with_timesteps([seen], attack)[0].diverged is None


def test_an_update_that_is_broken_is_refused_for_that():
    seen = seen_at((200,))
    name = next(iter(seen.update))
    broken = dataclasses.replace(seen, update={**seen.update, name: seen.update[name] * torch.nan})
    (found,) = DLG(evaluations=1).run([broken], stream(0, "a"))
    assert found.diverged == f"the update's '{name}' is not finite"
