"""Checks that an attack which reads a private timestep does exactly what it does with a granted one."""

import pytest
import torch

from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.experiment.scene import Scene
from benchmark.registry import Registry, load
from benchmark.scenario import Scenario
from benchmark.types import Capability
from tests.scenes import CACHE

READERS = [plugin for plugin in Registry().all("attack") if "with_timesteps" in plugin.path.read_text()]
"""The attacks that read private timesteps in closed form."""

CASES = [(plugin.name, "none", "private_timestep") for plugin in READERS] + [
    (plugin.name, "private_noise", "private_noise_timestep") for plugin in READERS if Capability.NOISE not in load(plugin).needs
]
"""An attack and two defenses. Under the second one, the timestep is private in addition."""


def test_all_attacks_that_read_timesteps_are_there():
    names = {plugin.name for plugin in READERS}
    assert names >= {"activations", "adam_l2", "dlg", "inverting_gradients", "posterior_mode", "residual", "spans", "whitened"}


@pytest.mark.parametrize(("attack", "granted", "private"), CASES)
def test_a_timestep_that_was_read_is_as_good_as_a_granted_one(attack, granted, private):
    """Check that the images are equal to the bit: the same search, from the same draws."""
    grid = Grid(
        title="t",
        datasets=("photos",),
        scenarios=(Scenario(image_size=8),),
        models=("tiny[prior=tiny:trained]",),
        defenses=(granted, private),
        attacks=(attack,),
        victims=2,
        evaluations=6,
    )
    better, worse = (Scene(cell, CACHE) for cell in plan(grid, Registry(), "cpu") if cell.attack_label == attack)
    for victim, a, b in zip(worse.victims, better.attack(), worse.attack(), strict=True):
        assert torch.equal(b.timesteps, victim.timesteps)
        assert a.evaluations == b.evaluations > 1
        assert torch.equal(a.images, b.images)
