"""The way to pictures: the autoencoder alone only where the pipeline's own picture of another sample is the same."""

import diffusers
import pytest
import torch
from linear import LinearDenoiser
from small import SCHEDULERS, sdxl

import denoscope


class Codes(torch.nn.Module):
    """An autoencoder that keeps latents as they are, within [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def decode(self, z, return_dict=False):
        return (torch.tanh(self.weight * z),)


class Normalising(diffusers.DiffusionPipeline):
    """Divides its last sample by a number: a fixed one, or the sample's own largest value."""

    def __init__(self, unet, scheduler, vae, by_largest=True):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.by_largest = by_largest

    @torch.no_grad()
    def __call__(self, generator=None, num_inference_steps=3, output_type="pt"):
        x = self.prepare_latents(generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
        by = x.abs().max() if self.by_largest else 2.0
        return diffusers.ImagePipelineOutput(images=self.vae.decode(x / by)[0] / 2 + 0.5)

    def prepare_latents(self, generator):
        return torch.randn(1, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("by_largest", [True, False])
def test_scaling_that_depends_on_the_sample_is_the_pipelines_own(by_largest):
    """Both fit the recorded sample; only a fixed scale fits another. Oracle: the arithmetic itself."""
    torch.manual_seed(0)
    pipeline = Normalising(LinearDenoiser().eval(), SCHEDULERS["ddim"](), Codes(), by_largest)
    trace = denoscope.load(pipeline).trace(seed=1)
    assert trace[0].run.decoding.engine == ("resumed one by one" if by_largest else "autoencoder")
    other = 5 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    by = other.abs().max() if by_largest else 2.0
    torch.testing.assert_close(trace.decode(other), torch.tanh(other / by) / 2 + 0.5, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers' own call of it
def test_an_autoencoder_in_another_dtype_is_asked_through_the_pipeline():
    """SDXL brings a `force_upcast` autoencoder to float32 for the picture, and back."""
    pipeline = sdxl()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.register_to_config(force_upcast=True)
    pipeline.to(torch.float16)
    call = dict(num_inference_steps=2, height=32, width=32)
    trace = denoscope.load(pipeline).trace("a red circle", seed=0, output_type="pt", **call)
    assert trace[0].run.decoding.engine.startswith("resumed")
    torch.testing.assert_close(trace.decode(trace[-1].prev_sample).float(), trace.images.float(), atol=1e-3, rtol=0)
    assert pipeline.vae.dtype == torch.float16
