"""A second family in one file: two convolutions with a learned shift between them, and no landmarks."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from benchmark.diffusion.denoiser import Denoiser
from benchmark.diffusion.family import Family


class ConvNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, channels=8):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.time = nn.Linear(2, channels)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x_t, times):
        angle = times.to(x_t.dtype) / 500
        shift = self.time(torch.stack([angle.sin(), angle.cos()], 1))
        return self.last(nn.functional.silu(self.first(x_t) + shift[:, :, None, None]))


class ConvDenoiser(Denoiser):
    part = "convnet"

    def predict(self, x_t, times):
        return self.body(x_t, times)


class ConvFamily(Family):
    name = "ConvNet"
    denoiser = ConvDenoiser

    def size(self, config, what):
        return config["sample_size"], 1

    def network(self, config):
        return ConvNet.from_config(config)


FAMILY = ConvFamily()
