"""Tests of several local steps and clients: the update, the granted secrets, and the update that a guess would give."""

import copy
import dataclasses

import pytest
import torch
from torch.autograd import grad

from benchmark.attacks.dlg import DLG
from benchmark.base.seeds import stream
from benchmark.clients.toy import PlainDefense, toy
from benchmark.diffusion.loss import training_loss
from benchmark.evaluation.judge import judge
from benchmark.matching.engine import Matching, Task, match
from benchmark.matching.lbfgs import lbfgs
from benchmark.matching.objectives import squared_distance
from benchmark.matching.plans import plan_for
from benchmark.matching.problem import Backend, CleanGuess, NoisyGuess, Updates, choose_backend, clean_guess, mean_colour_start
from benchmark.matching.resources import Peak
from benchmark.types import Capability, Reconstruction, Victim

TIMESTEPS = (200, 20, 500, 100, 300, 50, 700, 10, 400, 250, 150, 600)


def scene_of(clients=1, steps=1, batch=1, lr=0.05, **practice):
    timesteps = TIMESTEPS[: clients * steps * batch]
    return toy(batch=batch, clients=clients, local_steps=steps, local_lr=lr, timesteps=timesteps, **practice)


def flattened(update):
    return torch.cat([value.flatten() for value in update.values()]).double()


def relative(update, reference):
    a, b = flattened(update), flattened(reference)
    return float((a - b).norm() / b.norm())


def part(victim, places):
    return Victim(victim.images[places], victim.timesteps[places], victim.noise[places], victim.sources[places])


def by_hand(scene, victim):
    """Train one client with torch's SGD in float64. Return the update and the network before each step and at the end."""
    steps, lr = scene.scenario.local_steps, scene.scenario.local_lr
    network = copy.deepcopy(scene.network).double()
    optimiser = torch.optim.SGD(network.parameters(), lr=lr)
    path = [copy.deepcopy(network)]
    size = len(victim.images) // steps
    for k in range(steps):
        mine = part(victim, slice(k * size, (k + 1) * size))
        optimiser.zero_grad()
        training_loss(network, scene.schedule, mine.images.double(), mine.timesteps, mine.noise.double()).backward()
        optimiser.step()
        path.append(copy.deepcopy(network))
    ends = zip(path[0].named_parameters(), path[-1].parameters(), strict=True)
    return {name: (start - end).detach() / (lr * steps) for (name, start), end in ends}, path


def guessed_update(observation, guess):
    updates = Updates(observation, choose_backend(observation))
    return {name: value[0].detach() for name, value in updates(guess).items()}


def at_the_truth(scene, observation):
    """Return the update that the engine computes for the true images."""
    victim = scene.victim
    guess = CleanGuess(victim.images[None], victim.timesteps[None], victim.noise[None])
    return guessed_update(observation, guess)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_update_equals_that_of_a_plain_sgd_loop(steps, batch):
    scene = scene_of(steps=steps, batch=batch)
    expected, _ = by_hand(scene, scene.victim)
    observation = scene.observe(PlainDefense())
    assert relative(observation.update, expected) < 2e-6
    assert steps == 1 or relative(scene.step().gradient(), expected) > 1e-3, "the local steps must matter here"


def test_one_step_of_one_client_is_the_gradient_to_the_bit():
    scene = scene_of(batch=2)
    expected = scene.step().gradient()
    observation = scene.observe(PlainDefense())
    assert all(torch.equal(value, expected[name]) for name, value in observation.update.items())
    assert observation.local_lr is None and observation.order_known


def test_what_clients_send_is_averaged():
    scene = scene_of(clients=3, steps=2)
    alone = dataclasses.replace(scene.scenario, clients=1, timesteps=200)
    updates = [
        dataclasses.replace(scene, victim=part(scene.victim, slice(2 * k, 2 * k + 2)), scenario=alone)
        .observe(PlainDefense())
        .update
        for k in range(3)
    ]
    mean = {name: sum(update[name] for update in updates) / 3 for name in updates[0]}
    assert relative(scene.observe(PlainDefense()).update, mean) < 1e-6


def test_clients_of_one_step_are_one_large_batch():
    scene = scene_of(clients=3, batch=2)
    assert relative(scene.observe(PlainDefense()).update, scene.step().gradient()) < 1e-6


def test_the_global_weights_stay():
    scene = scene_of(clients=2, steps=3)
    before = copy.deepcopy(scene.network.state_dict())
    scene.observe(PlainDefense())
    assert all(torch.equal(value, before[name]) for name, value in scene.network.state_dict().items())


def test_a_defense_acts_on_every_step_and_then_on_what_leaves_each_client():
    scene = scene_of(clients=2, steps=3, lr=0.1)
    events = []

    class Watched(PlainDefense):
        def gradient(self, step, generator):
            events.append((copy.deepcopy(step.network), step.victim))
            return step.gradient()

        def release(self, update, scenario, generator):
            events.append(update)
            return {name: value * len(events) for name, value in update.items()}

    observation = scene.observe(Watched())
    assert [isinstance(event, tuple) for event in events] == [True, True, True, False] * 2
    for client in (0, 1):
        mine = part(scene.victim, slice(3 * client, 3 * client + 3))
        update, path = by_hand(scene, mine)
        for k, (network, victim) in enumerate(events[4 * client : 4 * client + 3]):
            assert torch.equal(victim.images, mine.images[k : k + 1])
            for p, q in zip(network.parameters(), path[k].parameters(), strict=True):
                torch.testing.assert_close(p.double(), q, atol=1e-6, rtol=1e-5)
        assert relative(events[4 * client + 3], update) < 2e-6
    expected = {name: (4 * value + 8 * events[7][name]) / 2 for name, value in events[3].items()}
    assert relative(observation.update, expected) < 1e-6


def test_granted_secrets_are_ordered_by_client_step_and_image():
    scene = scene_of(clients=2, steps=2, batch=3)
    observation = scene.observe(PlainDefense())
    assert observation.timesteps.tolist() == list(TIMESTEPS)
    assert torch.equal(observation.noise, scene.victim.noise)
    assert (observation.clients, observation.local_steps, observation.batch_size, observation.image_count) == (2, 2, 3, 12)
    assert (observation.local_lr, observation.order_known) == (0.05, True)
    assert observation.batch_shape == tuple(scene.victim.images.shape)


def test_an_unknown_order_grants_the_same_pairs_in_another_one():
    scene = scene_of(clients=2, steps=2, batch=3, order="unknown")
    observation = scene.observe(PlainDefense())
    assert not observation.order_known
    assert observation.timesteps.tolist() != list(TIMESTEPS) and sorted(observation.timesteps.tolist()) == sorted(TIMESTEPS)
    for t, eps in zip(observation.timesteps.tolist(), observation.noise, strict=True):
        assert torch.equal(eps, scene.victim.noise[TIMESTEPS.index(t)])
    known = scene_of(clients=2, steps=2, batch=3).observe(PlainDefense())
    assert all(torch.equal(value, known.update[name]) for name, value in observation.update.items())


def test_the_order_counts_as_known_if_nothing_is_granted():
    class Silent(PlainDefense):
        hides = frozenset({Capability.TIMESTEP, Capability.NOISE})

    assert scene_of(steps=2, order="unknown").observe(Silent()).order_known


def test_the_judge_finds_each_estimate_in_an_unknown_order():
    scene = scene_of(clients=2, steps=2, batch=3, order="unknown")
    observation, victim = scene.observe(PlainDefense()), scene.victim
    images = torch.stack([victim.images[TIMESTEPS.index(t)] for t in observation.timesteps.tolist()])
    rebuilt = Reconstruction(images, 0, timesteps=observation.timesteps, noise=observation.noise)
    samples = judge([victim], [rebuilt], 30)
    assert [sample.timestep for sample in samples] == list(TIMESTEPS)
    assert all((sample.measured["psnr"], sample.timestep_error, sample.noise_mse) == (100.0, 0, 0.0) for sample in samples)


@pytest.mark.parametrize(("clients", "steps", "batch"), [(1, 3, 1), (2, 2, 2)])
def test_unrolling_the_local_steps_gives_the_update(clients, steps, batch):
    scene = scene_of(clients, steps, batch)
    observation = scene.observe(PlainDefense())
    assert choose_backend(observation) is Backend.UNROLLED
    assert relative(at_the_truth(scene, observation), observation.update) < 2e-6


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "amsgrad"])
def test_unrolling_gives_the_update_of_every_optimiser(name):
    """With an eps far above the rounding of gradients, which Adam would amplify."""
    scene = scene_of(steps=3, optimiser=name, lr=0.01, eps=1e-3, weight_decay=0.1, max_norm=0.5)
    observation = scene.observe(PlainDefense())
    assert choose_backend(observation) is Backend.UNROLLED
    assert relative(at_the_truth(scene, observation), observation.update) < 1e-4


def test_without_an_order_the_error_is_proportional_to_the_step_size():
    errors = []
    for lr in (0.02, 0.01, 0.005):
        scene = scene_of(steps=3, lr=lr, order="unknown")
        observation = scene.observe(PlainDefense())
        assert choose_backend(observation) is Backend.BATCHED
        errors.append(relative(at_the_truth(scene, observation), observation.update))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_a_guess_of_noisy_images_is_unrolled_too():
    """Take each residual at the weights of its own step."""
    scene = scene_of(steps=3)
    victim, (_, path) = scene.victim, by_hand(scene, scene.victim)
    x_t = scene.schedule.add_noise(victim.images, victim.timesteps, victim.noise)
    target = scene.schedule.target(victim.images, victim.timesteps, victim.noise)
    with torch.no_grad():
        outputs = [path[k](x_t[k, None].double(), victim.timesteps[k, None])[0].float() for k in range(3)]
    guess = NoisyGuess(x_t[None], victim.timesteps[None], (torch.stack(outputs) - target)[None])
    observation = scene.observe(PlainDefense())
    assert relative(guessed_update(observation, guess), observation.update) < 1e-5


def test_the_gradient_of_the_cost_agrees_with_finite_differences():
    scene = scene_of(clients=2, steps=2)
    observation = dataclasses.replace(scene.observe(PlainDefense()), network=copy.deepcopy(scene.network).double())
    goal = {name: value[None].double() for name, value in observation.update.items()}
    draw = stream(0, "slope")
    x, along = (torch.randn(1, *observation.batch_shape, generator=draw, dtype=torch.float64) for _ in range(2))

    updates = Updates(observation, choose_backend(observation))

    def cost(x):
        return squared_distance(
            updates(CleanGuess(x, observation.timesteps[None], observation.noise[None].double())), goal
        ).sum()

    x.requires_grad_()
    (slope,) = grad(cost(x), x)
    h = 1e-3  # diffusers' attention rounds to float32 within, so a smaller one drowns
    difference = float((cost(x + h * along) - cost(x - h * along)).detach()) / (2 * h)
    assert float((slope * along).sum()) == pytest.approx(difference, rel=1e-4)


def matching(count, **practice):
    draw = stream(0, "starts")
    observation = [scene_of(**practice).observe(PlainDefense()) for _ in range(count)]
    observation = [dataclasses.replace(one, network=observation[0].network) for one in observation]
    tasks = [Task(one, {"x_0": torch.randn(one.batch_shape, generator=draw)}, 1) for one in observation]
    x = torch.stack([task.start["x_0"].flatten() for task in tasks])
    return Matching(tasks, clean_guess, squared_distance), x


def test_threads_do_not_share_local_weights():
    (one, x), (many, _) = matching(4, steps=2), matching(4, steps=2)
    one.workers, many.workers, one.largest, many.largest = 1, 4, 1, 1
    for a, b in zip(one(x, range(4)), many(x, range(4)), strict=True):
        assert torch.equal(a, b)


def test_the_predicted_memory_is_what_local_steps_take():
    some, x = matching(2, steps=3)
    observation = some.tasks[0].observation
    with Peak() as memory:
        some._chunk(x, (0, 1))
    assert memory.peak == pytest.approx(2 * plan_for(observation).need, rel=0.1)


def test_practices_are_evaluated_apart():
    """Match one batch of two images together with two steps of one image each."""
    observation = [scene_of(batch=2).observe(PlainDefense()), scene_of(steps=2).observe(PlainDefense())]
    observation[1] = dataclasses.replace(observation[1], network=observation[0].network)
    tasks = [Task(one, {"x_0": mean_colour_start(one)}, 3) for one in observation]
    together = match(tasks, clean_guess, squared_distance, lbfgs)
    alone = [match([task], clean_guess, squared_distance, lbfgs)[0] for task in tasks]
    assert [s.loss for s in together] == [s.loss for s in alone]


def test_images_behind_two_local_steps_are_recovered():
    scene = toy(batch=1, local_steps=2, local_lr=0.1)
    observation = scene.observe(PlainDefense())
    rebuilt = [*DLG(evaluations=130).run([observation], stream(0, "attack")), Reconstruction(mean_colour_start(observation), 0)]
    found, floor = (judge([scene.victim], [one], 30) for one in rebuilt)
    assert all(a.measured["psnr"] > b.measured["psnr"] + 12 for a, b in zip(found, floor, strict=True))
