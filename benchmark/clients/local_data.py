"""What a client does with its images before it trains: it walks through them in shuffled batches and augments them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmark.base.practice import Augmentation
from benchmark.plugins import Picture
from benchmark.scenario import Scenario
from benchmark.types import Victim

BORDER = 8
"""The black border of `flip_crop` is the side of an image over this number: 4 pixels for 32, as is usual for CIFAR-10."""


def walk(pictures: Sequence[Picture], scenario: Scenario, generator: torch.Generator) -> list[Picture]:
    """Return the picture of each use, ordered by client, epoch and step.

    Pictures are drawn in a random order, so the first epoch takes them as they come. Later ones shuffle them.

    Args:
        pictures: the different images of the round, ordered by client.
        scenario: the clients' practice.
        generator: the random stream that shuffles.
    """
    own = len(pictures) // scenario.clients
    uses: list[Picture] = []
    for first in range(0, len(pictures), own):
        uses += pictures[first : first + own]
        for _ in range(scenario.epochs - 1):
            uses += [pictures[first + int(place)] for place in torch.randperm(own, generator=generator)]
    return uses


def augmented(victim: Victim, kind: Augmentation, generator: torch.Generator) -> Victim:
    """Return a victim with each image as it is used, after random flips and crops.

    The crop is torchvision's `RandomCrop(side, padding=side // 8)` on square images, the flip its `RandomHorizontalFlip`.

    Args:
        victim: images of height and width (N, C, H, W), with their draws.
        kind: the changes.
        generator: the random stream of the changes.
    """
    images = victim.images
    if kind == "flip_crop":
        images = torch.stack([_cropped(image, generator) for image in images])
    if kind != "none":
        flips = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    return dataclasses.replace(victim, images=images)


def _cropped(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop of the size of the image (C, H, W), from the image in a black border."""
    height, width = image.shape[-2:]
    border = height // BORDER
    top, left = torch.randint(2 * border + 1, (2,), generator=generator).tolist()
    return pad(image, [border] * 4, value=-1.0)[:, top : top + height, left : left + width]
