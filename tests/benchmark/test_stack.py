import pytest
import torch

from benchmark.base.errors import UserError
from benchmark.base.seeds import stream
from benchmark.clients.stack import Stacked
from benchmark.clients.toy import toy
from benchmark.defenses.clipping import Clipping
from benchmark.defenses.gaussian_noise import GaussianNoise
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.defenses.private_noise import PrivateNoise
from benchmark.defenses.quantisation import Quantisation
from benchmark.experiment.grid import Grid
from benchmark.experiment.plan import plan
from benchmark.registry import Registry
from benchmark.scenario import Scenario
from benchmark.types import Capability
from benchmark.vectors import norm


def planned(*defenses):
    grid = Grid("t", ("photos",), ("tiny",), defenses, ("dlg",), victims=1, evaluations=2)
    found = plan(grid, Registry(), "cpu")
    return {cell.defense_label: cell for cell in found if cell.attack_label == "dlg"}


def test_releases_act_from_left_to_right():
    update = toy().step().gradient()
    noisy_last = Stacked((Clipping(clip=0.01), GaussianNoise(ratio=2.0))).release(update, Scenario(), stream(0, "d"))
    assert norm(noisy_last) == pytest.approx(0.01 * 5**0.5, rel=0.05)
    rounded_last = Stacked((GradientPruning(keep=0.1), Quantisation(bits=2))).release(update, Scenario(), stream(0, "d"))
    assert all(value.unique().numel() <= 3 for value in rounded_last.values())


def test_every_member_acts_and_says_what_it_says_alone():
    stack = Stacked((GradientPruning(keep=0.5), PrivateNoise()))
    observation = toy().observe(stack)
    values = torch.cat([value.flatten() for value in observation.update.values()])
    assert float((values == 0).float().mean()) >= 0.499
    assert observation.noise is None and stack.hides == {Capability.NOISE}
    assert stack.public(Scenario()).disclosed == {"kept_share"}


def test_a_stack_is_a_value_of_the_axis_with_its_own_identity():
    found = planned("gradient_pruning[keep=0.1,0.5]+private_noise", "gradient_pruning[keep=0.1]")
    assert list(found) == [
        "gradient_pruning[keep=0.1]+private_noise",
        "gradient_pruning[keep=0.5]+private_noise",
        "gradient_pruning[keep=0.1]",
    ]
    assert len({cell.identity for cell in found.values()}) == len({cell.keys.defense for cell in found.values()}) == 3


def test_a_guarantee_survives_what_comes_after_it():
    cells = planned("dp_sgd+gradient_pruning", "dp_sgd")
    stacked, alone = (cells[name].defense.privacy(Scenario()) for name in ("dp_sgd+gradient_pruning", "dp_sgd"))
    assert stacked == alone


def test_what_only_hides_may_stand_anywhere():
    assert planned("private_noise+clipping", "clipping+private_noise", "timestep_range[least=5]+dp_sgd+private_noise")


@pytest.mark.parametrize(
    ("defense", "sentence"),
    [
        ("gradient_pruning+dp_sgd", "'dp_sgd' acts before 'gradient_pruning' and must be written before it"),
        ("dp_sgd+dpdm", "both decide how gradients are combined"),
        ("none+dp_sgd", "'none' changes nothing"),
        ("private_noise+near_noise", "'private_noise' hides the noise that 'near_noise' discloses"),
        ("gradient_pruning+random_pruning", "both decide the kept_share"),
        ("dp_sgd+client_dp", "both decide the noise_std"),
        ("dp_sgd+gaussian_noise", "both add noise"),
        ("gradient_pruning+clipping", "'clipping' acts before 'gradient_pruning' and must be written before it"),
        ("quantisation+gaussian_noise", "'gaussian_noise' acts before 'quantisation'"),
        ("dp_sgd+clipping", "'clipping' acts before 'dp_sgd'"),
        ("secure_aggregation+client_dp", "'client_dp' acts before 'secure_aggregation'"),
        ("clipping+withhold", "'withhold' acts before 'clipping'"),
        ("clipping+clipping[clip=2]", "names one defense twice"),
        ("clipping+", "an empty name"),
        ("clipping+nothing_such", "nothing_such"),
    ],
)
def test_contradictions_are_one_sentence_before_anything_runs(defense, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        planned(defense)
    assert "\n" not in str(caught.value)
