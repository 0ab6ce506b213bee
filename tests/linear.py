"""Denoisers whose answers are known exactly: linear ones, and one that hears the time step."""

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from small import SCHEDULERS

import denoscope


class LinearDenoiser(ModelMixin, ConfigMixin):
    """Two convolutions of one position, `entry` and `exit`; with `hears_time` the time step is added, in thousands."""

    @register_to_config
    def __init__(self, sample_size=8, in_channels=3, hears_time=False):
        super().__init__()
        self.entry = torch.nn.Conv2d(in_channels, 4, 1)
        self.exit = torch.nn.Conv2d(4, in_channels, 1)

    def forward(self, sample, timestep, return_dict=True):
        hidden = self.entry(sample)
        if self.config.hears_time:
            hidden = hidden + torch.as_tensor(timestep, dtype=sample.dtype) / 1000
        return UNet2DOutput(sample=self.exit(hidden))


def linear_model(hears_time=False, scheduler="ddim", **options):
    torch.manual_seed(0)
    unet = LinearDenoiser(hears_time=hears_time, **options).eval()
    kinds = {"ddim": diffusers.DDIMPipeline, "ddpm": diffusers.DDPMPipeline}
    pipeline = kinds[scheduler](unet, SCHEDULERS[scheduler]())
    pipeline.set_progress_bar_config(disable=True)
    return denoscope.load(pipeline)


def linear_trace(hears_time=False, steps=4, seed=0, **options):
    return linear_model(hears_time, **options).trace(seed=seed, num_inference_steps=steps)
