import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.base.seeds import stream
from benchmark.clients.toy import toy
from benchmark.defenses.gradient_pruning import GradientPruning
from benchmark.scenario import Scenario

UPDATE = toy().step().gradient()
SIZE = sum(value.numel() for value in UPDATE.values())


def prune(keep):
    return GradientPruning(keep=keep).release(UPDATE, Scenario(), stream(0, "unused"))


@given(st.floats(1e-6, 1))
def test_the_largest_share_is_kept_unchanged_and_the_rest_is_zero(keep):
    pruned = torch.cat([value.flatten() for value in prune(keep).values()])
    original = torch.cat([value.flatten() for value in UPDATE.values()])
    kept = pruned != 0
    assert int(kept.sum()) == min(max(1, round(keep * SIZE)), int((original != 0).sum()))
    assert torch.equal(pruned[kept], original[kept])
    if kept.any() and not kept.all():
        assert original[kept].abs().min() >= original[~kept].abs().max()


def test_keeping_everything_changes_no_bit():
    assert all(torch.equal(value, UPDATE[name]) for name, value in prune(1.0).items())


def test_ties_do_not_keep_more_than_the_share():
    flat = {"a": torch.ones(10), "b": -torch.ones(10)}
    pruned = GradientPruning(keep=0.25).release(flat, Scenario(), stream(0, "unused"))
    assert sum(int((value != 0).sum()) for value in pruned.values()) == 5


def test_the_share_is_public():
    assert GradientPruning(keep=0.3).public(Scenario()).disclosed == {"kept_share"}


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(keep):
    with pytest.raises(ValueError, match="keep must be above 0 and at most 1"):
        GradientPruning(keep=keep)
