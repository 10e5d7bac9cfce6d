"""The search that grows."""

import dataclasses
import math

import pytest
import torch
from benchmark.attacks.coarse_to_fine import CoarseToFine, _better_half, _greys, _levels, _matched
from benchmark.attacks.constant_image import ConstantImage
from torch.nn import functional as F

from benchmark.contract import Exposed, toy
from benchmark.matching.adapted import directions
from benchmark.matching.search import Solution
from benchmark.metrics import psnr
from benchmark.seeds import stream


def test_levels_double_up_to_the_image_and_keep_its_shape():
    assert _levels((3, 128, 128), 2) == [(2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128)]
    assert _levels((3, 24, 48), 4) == [(4, 8), (8, 16), (16, 32), (24, 48)]
    assert _levels((1, 2, 2), 2) == [(2, 2)]


def test_an_image_of_few_pixels_is_found_at_its_own_level():
    """The truth is on the second level, so nothing is left for the third to do."""
    scene = toy(batch=1)
    few = torch.rand(1, 3, 4, 4, generator=stream(0, "few")) * 1.2 - 0.6
    images = F.interpolate(few, scene.victim.images.shape[-2:], mode="bicubic")
    scene = dataclasses.replace(scene, victim=dataclasses.replace(scene.victim, images=images))
    seen = scene.observe(Exposed())
    (found,) = _matched([seen], [_greys(seen, (2, 2), 3)], (2, 2), [20], directions)
    first = _better_half(found)[0]
    ((second,),) = _matched([seen], [[first]], (4, 4), [150], directions)
    assert psnr(second.variables["x_0"][0], few[0]) > 40 > psnr(F.interpolate(first, 4)[0], few[0])


def test_it_rebuilds_an_image_within_its_budget():
    scene = toy(batch=1)
    seen = scene.observe(Exposed())
    (rebuilt,) = CoarseToFine(evaluations=200).run([seen], stream(0, "attack"))
    (floor,) = ConstantImage().run([seen], stream(0, "attack"))
    found, least = (psnr(one.images[0].clamp(-1, 1), scene.victim.images[0]) for one in (rebuilt, floor))
    assert found > 35 > least
    assert rebuilt.evaluations <= 200


def test_the_starts_that_match_worse_are_given_up():
    losses = [0.3, math.inf, 0.1, 0.2, 0.4]
    found = [Solution({"x_0": torch.tensor([float(place)])}, loss, 1) for place, loss in enumerate(losses)]
    assert [int(x) for x in _better_half(found)] == [2, 3, 0]
    assert [int(x) for x in _better_half(found[:1])] == [0]


@pytest.mark.parametrize(
    "wrong", [{"coarse_share": 0}, {"coarse_share": 1}, {"coarsest": 0}, {"starts": 0}, {"evaluations": 0}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CoarseToFine(**wrong)
