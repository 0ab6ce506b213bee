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


@pytest.fixture(scope="session")
def example_names():
    """The public names, and those that docstrings use without making them: a small model, its trace, a classifier."""
    import denoscope
    from denoscope.vision.encoders import load_encoder

    pipe = PIPELINES["stable-diffusion"]()
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.decoder.conv_out.weight.data *= 30  # pictures with contrast, or LIME finds no segments
    model = denoscope.load(pipe)
    prompt = "a large striped red circle on a white background"
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    labels = ["tiger", *(f"animal {number}" for number in range(9))]
    return {
        **{name: getattr(denoscope, name) for name in denoscope.__all__},
        "load_encoder": load_encoder,
        "pipe": pipe,
        "model": model,
        "trace": model.trace(prompt, seed=0, num_inference_steps=30),
        "mask": torch.zeros(32, 32, dtype=torch.bool).index_fill(0, torch.arange(8, 24), True).numpy(),
        "module": module,
        "classifier": denoscope.load_classifier(module, labels, size=32, mean=0.5, std=0.5),
        "frames": denoscope.blend(torch.rand(3, 32, 32), count=5, draws=2),
    }
