"""Small real components built from configs: every pipeline family the tests run on."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from small import PIPELINES, SCHEDULERS

torch.set_num_threads(1)  # what is small gains nothing from a second, and two wait for each other on a busy machine


@pytest.fixture(scope="session")
def components():
    """The weights of a small StableDiffusionPipeline, made once."""
    return PIPELINES["stable-diffusion"]()


@pytest.fixture
def stable_diffusion(components):
    """A small StableDiffusionPipeline with DPM-Solver++; a test may change its scheduler, the next has its own."""
    components.scheduler = SCHEDULERS["dpm-solver++"]()
    return components


@pytest.fixture
def trace(stable_diffusion):
    """A short guided trace of the small Stable Diffusion."""
    import denoscope

    return denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=4)
