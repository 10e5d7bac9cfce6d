import dataclasses

import pytest
import torch

from benchmark.attacks.dlg import DLG
from benchmark.base.seeds import stream
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import toy
from benchmark.closed_form.timesteps import MIN_CONFIDENCE, UnreadableTimesteps, read_timesteps, with_timesteps
from benchmark.defenses.dp_sgd import DPSGD
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.none import NoDefense
from benchmark.defenses.private_noise_timestep import PrivateNoiseTimestep
from benchmark.defenses.private_timestep import PrivateTimestep
from benchmark.defenses.quantisation import Quantisation
from benchmark.defenses.random_pruning import RandomPruning
from benchmark.experiment.simulation import simulate
from benchmark.scenario import Scenario

WIDE = (32, 32)


def draw_timesteps(count, seed=0):
    return tuple(torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:count].tolist())


def observe_at(timesteps, defense=None, seed=0, **practice):
    """Return the observation of a client that trains at these timesteps. By default noise and timesteps are private."""
    scene = toy(batch=practice.pop("batch", len(timesteps)), channels=WIDE, timesteps=timesteps, **practice)
    return scene.observe(defense or PrivateNoiseTimestep(), seed)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_timesteps_of_a_batch_are_read(count, seed):
    timesteps = draw_timesteps(count, seed)
    reading = read_timesteps(observe_at(timesteps))
    assert reading.timesteps.tolist() == sorted(timesteps)
    assert reading.confidence > 10 * MIN_CONFIDENCE


def test_neighbouring_timesteps_are_distinguished():
    assert read_timesteps(observe_at((499, 500, 501))).timesteps.tolist() == [499, 500, 501]


def test_a_timestep_that_all_images_share_is_read():
    assert read_timesteps(observe_at((7, 7, 7))).timesteps.tolist() == [7, 7, 7]


@pytest.mark.parametrize("practice", [{"clients": 4}, {"local_steps": 4, "local_lr": 0.1}], ids=["clients", "local steps"])
def test_clients_and_local_steps_keep_the_span(practice):
    """The layer's input depends on no weight, so neither a sum over clients nor a local step hides it."""
    timesteps = draw_timesteps(4)
    assert read_timesteps(observe_at(timesteps, batch=1, **practice)).timesteps.tolist() == sorted(timesteps)


@pytest.mark.parametrize(
    ("observation", "reason"),
    [
        (lambda: observe_at((5, 5, 9)), "some are repeated"),
        (lambda: observe_at(draw_timesteps(33)), "too many for a time embedding of width 32"),
        (lambda: observe_at(draw_timesteps(24)), "stand out"),
        (lambda: observe_at((200,), DPSGD(noise_multiplier=1.0)), "stand out"),
        (lambda: observe_at(draw_timesteps(3), GradientPruning(keep=0.1)), "stand out"),
    ],
    ids=["repeated", "too many", "more than rounding allows", "noise", "pruning"],
)
def test_unreadable_timesteps_are_refused_with_the_reason(observation, reason):
    with pytest.raises(UnreadableTimesteps, match=reason):
        read_timesteps(observation())


@pytest.mark.parametrize("times", [(200,), (0, 500, 999)])
def test_without_the_first_layer_the_blocks_give_the_timestep(times):
    """The server can compute the input of the blocks' embedding layers for every timestep."""
    observation = withholding(observe_at(times), "time_embedding")
    assert read_timesteps(observation).timesteps.tolist() == sorted(times)


def test_if_every_layer_with_the_embedding_is_withheld_it_is_refused():
    with pytest.raises(UnreadableTimesteps, match="no layer that takes the time embedding left the client"):
        read_timesteps(withholding(observe_at((200,)), "time_emb"))


@pytest.mark.parametrize("times", [(200,), (0, 500, 999)])
def test_without_biases_the_weights_give_the_timestep(times):
    assert read_timesteps(withholding(observe_at(times), "bias")).timesteps.tolist() == sorted(times)


def withholding(observation, part):
    return dataclasses.replace(
        observation, update={name: value for name, value in observation.update.items() if part not in name}
    )


def test_reading_the_timestep_gives_the_same_images_as_knowing_it():
    known, private = (observe_at((300,), defense) for defense in (NoDefense(), PrivateTimestep()))
    attack = DLG(evaluations=5)
    (expected,), (rebuilt,) = (attack.run([observation], stream(0, "a")) for observation in (known, private))
    assert torch.equal(expected.images, rebuilt.images)
    assert rebuilt.timesteps.tolist() == [300] and expected.timesteps is None


def test_only_the_victim_that_cannot_be_read_is_lost():
    observations = [observe_at((300,)), observe_at((300,), DPSGD(noise_multiplier=1.0)), observe_at((20,))]
    hidden = [dataclasses.replace(observation, timesteps=None) for observation in observations]
    lost = [rebuilt.diverged is not None for rebuilt in DLG(evaluations=2).run(hidden, stream(0, "a"))]
    assert lost == [False, True, False]


def test_if_no_victim_can_be_read_no_attack_runs():
    hidden = dataclasses.replace(observe_at((300,), DPSGD(noise_multiplier=1.0)), timesteps=None)
    broken = dataclasses.replace(hidden, update={name: value * 0 for name, value in hidden.update.items()})
    unread, zero = with_timesteps([hidden, broken], lambda observations: pytest.fail("there is nothing to attack"))
    assert "cannot be read" in unread.diverged and "zero everywhere" in zero.diverged


def test_a_set_of_timesteps_does_not_help_with_ordered_noise():
    """Nobody knows which of the granted noises belongs to which timestep."""
    (rebuilt,) = with_timesteps([observe_at((100, 200), PrivateTimestep())], lambda observations: [])
    assert "which of the granted noises" in rebuilt.diverged


def test_timesteps_read_after_local_steps_are_not_taken_as_ordered():
    observation = observe_at((700, 20), batch=1, local_steps=2, local_lr=0.1)
    assert observation.order_known

    def attack(observations):
        (known,) = observations
        assert known.timesteps.tolist() == [20, 700] and not known.order_known
        return DLG(evaluations=1).run(observations, stream(0, "a"))

    assert with_timesteps([observation], attack)[0].diverged is None


def test_a_broken_update_is_refused_for_that_reason():
    observation = observe_at((200,))
    name = next(iter(observation.update))
    broken = dataclasses.replace(observation, update={**observation.update, name: observation.update[name] * torch.nan})
    (rebuilt,) = DLG(evaluations=1).run([broken], stream(0, "a"))
    assert rebuilt.diverged == f"the update's '{name}' is not finite"


@pytest.mark.parametrize("times", [(200,), (30, 600)])
@pytest.mark.parametrize(
    "defense", [RandomPruning(keep=0.1), GradientPruning(keep=0.8), Quantisation(bits=8), GaussianNoise(ratio=0.1)]
)
def test_lossy_updates_give_the_timesteps_to_adaptive_attacks(times, defense):
    observation = observe_at(times, Stacked((defense, PrivateNoiseTimestep())))
    assert read_timesteps(observation, adaptive=True).timesteps.tolist() == list(times)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("defense", ["random_pruning[keep=0.1]", "gradient_pruning[keep=0.1]"])
def test_pruning_hides_no_timestep_of_a_trained_network(batch, defense):
    scenario = Scenario(batch_size=batch, timesteps="uniform")
    simulated = simulate(defense=f"{defense}+private_noise_timestep", scenario=scenario)
    assert (
        read_timesteps(simulated.observation, adaptive=True).timesteps.tolist()
        == simulated.victim.timesteps.sort().values.tolist()
    )
    with pytest.raises(UnreadableTimesteps):
        read_timesteps(simulated.observation)


def test_a_shared_timestep_is_read_from_exact_coordinates():
    observation = observe_at((7, 7, 7), Stacked((RandomPruning(keep=0.1), PrivateNoiseTimestep())))
    assert read_timesteps(observation, adaptive=True).timesteps.tolist() == [7, 7, 7]
    with pytest.raises(UnreadableTimesteps, match="some are repeated"):
        read_timesteps(observe_at((5, 5, 9), Stacked((RandomPruning(keep=0.3), PrivateNoiseTimestep()))), adaptive=True)


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_image_that_noise_hides_does_not_count_as_a_repeated_timestep(adaptive):
    """The second image has a gradient that is 10,000 times smaller, and rounding to 8 bits covers it."""
    observation, other = (observe_at((t,), Stacked((Quantisation(bits=8), PrivateNoiseTimestep()))) for t in (199, 968))
    mixed = {name: value + 1e-4 * other.update[name] for name, value in observation.update.items()}
    hidden = dataclasses.replace(observation, batch_size=2, update=mixed)
    with pytest.raises(UnreadableTimesteps, match="stand out"):
        read_timesteps(hidden, adaptive)


def test_strong_noise_hides_the_timestep_from_adaptive_attacks():
    for seed in range(5):
        observation = observe_at((200,), Stacked((GaussianNoise(ratio=30.0), PrivateNoiseTimestep())), seed=seed)
        with pytest.raises(UnreadableTimesteps, match="stand out"):
            read_timesteps(observation, adaptive=True)


def test_local_steps_are_read_from_the_layer_whose_input_stays():
    defense = Stacked((RandomPruning(keep=0.3), PrivateNoiseTimestep()))
    observation = observe_at((20, 700), defense, batch=1, local_steps=2, local_lr=0.1)
    assert read_timesteps(observation, adaptive=True).timesteps.tolist() == [20, 700]
    with pytest.raises(UnreadableTimesteps):
        read_timesteps(withholding(observation, "time_embedding"), adaptive=True)
