import dataclasses

import pytest
import torch

from benchmark.base.seeds import stream
from benchmark.evaluation.judge import judge
from benchmark.types import Reconstruction, Victim
from tests.scenes import oracle


@pytest.fixture
def victim():
    draw = stream(0, "victim")
    images = torch.rand(3, 3, 8, 8, generator=draw) * 2 - 1
    return Victim(images, torch.tensor([10, 20, 30]), torch.randn(3, 3, 8, 8, generator=draw), ("a", "b", "c"))


def test_the_oracle_is_the_ceiling(victim):
    samples = judge([victim], oracle([victim]), 30)
    assert [s.measured["psnr"] for s in samples] == [100.0] * 3
    assert all(s.success and s.status == "ok" for s in samples)


def test_order_within_the_batch_does_not_matter_and_timesteps_follow_their_image(victim):
    # A cycle of three is not its own inverse, so an assignment in the wrong direction would show.
    order = [1, 2, 0]
    rebuilt = Reconstruction(victim.images[order], 5, timesteps=victim.timesteps[order])
    samples = judge([victim], [rebuilt], 30)
    assert [s.measured["psnr"] for s in samples] == [100.0] * 3
    assert [s.timestep_error for s in samples] == [0, 0, 0]
    assert [s.source for s in samples] == ["a", "b", "c"]


def test_a_wrong_timestep_is_measured(victim):
    samples = judge([victim], [Reconstruction(victim.images, 5, timesteps=victim.timesteps + 7)], 30)
    assert [s.timestep_error for s in samples] == [7, 7, 7]


def test_the_noise_is_compared_with_the_truth_image_by_image(victim):
    order = [1, 2, 0]
    exact = Reconstruction(victim.images[order], 5, noise=victim.noise[order])
    assert [s.noise_mse for s in judge([victim], [exact], 30)] == [0.0] * 3
    other = torch.randn(victim.noise.shape, generator=stream(1, "other"))
    for estimate, expected in ((torch.zeros_like(other), 1), (other, 2), (victim.noise + 0.5, 0.25)):
        samples = judge([victim], [Reconstruction(victim.images, 5, noise=estimate)], 30)
        assert [s.noise_mse for s in samples] == pytest.approx([expected] * 3, rel=0.25)
    assert all(s.noise_mse is None for s in judge([victim], oracle([victim]), 30))
    with pytest.raises(ValueError, match="noise of shape"):
        judge([victim], [Reconstruction(victim.images, 5, noise=other[:1])], 30)


def test_predictions_follow_their_images_and_decide_what_is_accepted(victim):
    order = [1, 2, 0]
    rebuilt = Reconstruction(victim.images[order], 5, predicted_psnr=torch.tensor([40.0, 29.9, 30.0]))
    samples = judge([victim], [rebuilt], 30)
    assert [s.predicted_psnr for s in samples] == pytest.approx([30.0, 40.0, 29.9])
    assert [s.accepted for s in samples] == [True, True, False]
    assert all(s.accepted is None for s in judge([victim], oracle([victim]), 30))
    with pytest.raises(ValueError, match="predictions of shape"):
        judge([victim], [dataclasses.replace(rebuilt, predicted_psnr=torch.zeros(2))], 30)


def test_what_an_attack_notes_stands_as_the_reason(victim):
    samples = judge([victim], [Reconstruction(victim.images, 5, note="phase 1 skipped")], 30)
    assert [(s.status, s.reason) for s in samples] == [("ok", "phase 1 skipped")] * 3


def test_images_are_clipped_before_they_are_measured_and_kept(victim):
    """Values beyond the range where the original is at its edge cost nothing."""
    edges = torch.where(victim.images > 0, 1.0, -1.0)
    extreme = Victim(edges, victim.timesteps, victim.noise, victim.sources)
    samples = judge([extreme], [Reconstruction(edges * 50, 1)], 30)
    assert [s.measured["psnr"] for s in samples] == [100.0] * 3
    assert all(abs(s.reconstruction).max() == 1 for s in samples)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_images_that_are_not_finite_have_diverged_and_no_numbers(victim, broken):
    images = victim.images.clone()
    images[1, 0, 0, 0] = broken
    samples = judge([victim], [Reconstruction(images, 1)], 30)
    assert {s.status for s in samples} == {"diverged"}
    assert all(set(s.measured.values()) == {None} and not s.success for s in samples)


def test_an_attack_cannot_return_a_latent_or_another_number_of_victims(victim):
    with pytest.raises(ValueError, match="shape"):
        judge([victim], [Reconstruction(torch.zeros(3, 4, 2, 2), 1)], 30)
    with pytest.raises(ValueError, match="2 reconstructions for 1 victims"):
        judge([victim], [Reconstruction(victim.images, 1)] * 2, 30)
