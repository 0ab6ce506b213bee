"""Calls that cannot be read: the user's run goes on, and the reason is one paragraph at the first question."""

from dataclasses import replace

import diffusers
import pytest
import torch
from families.oracle import SEED, numbers, relative, run
from small import PIPELINES, SCHEDULERS, pixel_unet, refusal

import denoscope
from denoscope.errors import DenoscopeError, InputError, ReplayError
from denoscope.recording.hooks.calls import StepArguments


class ListUnet(diffusers.UNet2DModel):
    """A denoiser that takes and gives a list of pictures, as Z-Image's does."""

    def forward(self, sample, timestep):
        return ([super(ListUnet, self).forward(picture, timestep).sample for picture in sample],)


class SilentUnet(diffusers.UNet2DModel):
    """A denoiser that leaves its prediction elsewhere and gives None."""

    def forward(self, sample, timestep):
        self.prediction = super().forward(sample, timestep).sample


class Sampler(diffusers.DDPMPipeline):
    """Denoises with whatever its denoiser gives."""

    def __call__(self, generator=None, num_inference_steps=3):
        sample = torch.randn(1, 3, 16, 16, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                sample = self.scheduler.step(self.predicted(sample, t), t, sample).prev_sample
        return diffusers.ImagePipelineOutput(images=sample)

    def predicted(self, sample, t):
        if isinstance(self.unet, SilentUnet):
            self.unet(sample, t)
            return self.unet.prediction
        return self.unet([sample], t)[0][0]


@pytest.mark.parametrize("kind", [ListUnet, SilentUnet])
def test_denoisers_of_lists_and_of_nothing_are_recorded_and_refused(kind):
    pipeline = Sampler(kind(**{k: v for k, v in pixel_unet().config.items() if k[0] != "_"}), SCHEDULERS["ddim"]())
    plain = pipeline(generator=torch.Generator().manual_seed(1)).images
    trace = denoscope.load(pipeline).trace(seed=1)
    assert torch.equal(trace.images, plain) and len(trace) == 3
    assert "tensor" in refusal(lambda: trace[0].predict(trace[0].sample), kind=ReplayError)
    assert isinstance(trace[0].refusal, ReplayError) and trace[0].log_snr < trace[2].log_snr


def test_steps_of_other_signatures_are_read_by_name():
    """CogVideoX's DPM has other arguments between; what has no sample or no time step is not taken for one."""
    x, y = torch.zeros(1, 4, 2, 8, 8), torch.ones(1, 4, 2, 8, 8)
    step = diffusers.CogVideoXDPMScheduler().step
    arguments = StepArguments.of(step, (y, None, torch.tensor(7), 9, x), {"return_dict": False})
    assert arguments.model_output is y and arguments.sample is x and arguments.timestep == 7
    assert arguments.problem is None

    def karras(model_output, sigma_hat, sigma_prev, sample_hat, return_dict=True): ...

    arguments = StepArguments.of(karras, (y, 3.0, 2.0, x), {})
    assert arguments.sample is x and "no argument timestep and no sample" in arguments.problem
    assert StepArguments.of(lambda model_output, timestep: None, (y, 3), {}) is None


class KarrasScheduler(diffusers.DDIMScheduler):
    """DDIM with the signature of Karras et al.'s stochastic sampler."""

    def step(self, model_output, sigma_hat, sample_hat, **kwargs):
        return super().step(model_output, sigma_hat, sample_hat, **kwargs)


def test_a_step_of_another_signature_is_recorded_without_a_level(stable_diffusion):
    """Oracle: a second run with a disturbed step. Only the noise level is not known, and the denoiser alone."""
    stable_diffusion.scheduler = KarrasScheduler.from_config(SCHEDULERS["ddim"]().config)
    call = dict(prompt="a circle", num_inference_steps=3, output_type="latent")
    plain, other = run(stable_diffusion, call), run(stable_diffusion, call, 0)
    trace = denoscope.load(stable_diffusion).trace(**call, seed=SEED)
    assert torch.equal(trace.images, plain.result.images)
    for question in (lambda: trace[1].replay, lambda: trace[0].log_snr, trace[0].clean):
        assert "no argument timestep" in refusal(question, kind=DenoscopeError)
    with torch.no_grad():
        assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) < 1e-5


def packed_trace():
    """A trace of a small Flux, whose samples are (pictures, positions, channels)."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1, shift_factor=0.1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = diffusers.FluxPipeline(scheduler, vae, None, None, None, None, transformer)
    return denoscope.load(pipeline).trace(
        prompt_embeds=torch.randn(1, 6, 32),
        pooled_prompt_embeds=torch.randn(1, 32),
        height=16,
        width=16,
        num_inference_steps=2,
        seed=1,
    )


def test_packed_samples_are_maps_and_pictures():
    """Oracle: the pipeline's own unpacking, and its own picture of the last sample."""
    trace = packed_trace()
    step = trace[-1]
    assert step.sample.ndim == 3 and step.layout.order == "pc"
    unpacked = diffusers.FluxPipeline._unpack_latents(step.sample, 16, 16, 1)  # (1, 4, 16, 16): 2 × 2 pixels a position
    maps = step.as_maps(step.sample).unflatten(1, (4, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
    assert torch.equal(maps, unpacked) and step.grid == (8, 8)
    assert torch.equal(step.as_samples(step.as_maps(step.sample)), step.sample)
    picture = torch.from_numpy(numbers(trace.image)).movedim(-1, 0)
    with torch.no_grad():
        assert float((step.decode(step.prev_sample)[0].double() - picture).abs().max()) <= 1 / 255
    assert torch.equal(trace[0].clean(), trace.decode(trace[0].pred_original_sample))
    assert trace.clean_decoded().shape == trace.samples_decoded().shape == (2, 16, 16, 3)
    torch.testing.assert_close(trace[0].predict(trace[0].sample), trace[0].model_output)


def test_the_grid_of_a_picture(trace):
    assert trace[0].grid == (8, 8)


def test_doubled_samples_are_one_picture():
    """DiT guides by doubled samples: two of them for one picture. Oracle: the pipeline's own picture."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, out_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    pipeline = diffusers.DiTPipeline(transformer, vae, SCHEDULERS["ddim"](), id2label={0: "cat"})
    trace = denoscope.load(pipeline).trace([0], seed=0, num_inference_steps=2)
    assert trace.pictures == len(trace.images) == 1 and trace[0].sample.shape == (1, 4, 8, 8)
    picture = torch.from_numpy(numbers(trace.image)).movedim(-1, 0)
    with torch.no_grad():
        assert float((trace.decode(trace[-1].prev_sample)[0].double() - picture).abs().max()) <= 1 / 255
    assert torch.equal(trace.picture(0)[1].predict(trace[1].sample), trace[1].predict(trace[1].sample))
    assert "no picture 1" in refusal(lambda: trace.picture(1))


def test_results_of_any_form_have_pictures(stable_diffusion):
    """Ground truth: the same call's ordinary result. A result without pictures is named."""
    model = denoscope.load(stable_diffusion)
    call = dict(seed=0, num_inference_steps=2)
    trace = model.trace("a circle", **call, return_dict=False)
    assert trace.image.tobytes() == model.trace("a circle", **call).image.tobytes()
    frames = denoscope.Trace(trace.steps, diffusers.pipelines.pipeline_utils.AudioPipelineOutput(audios=1), {}, model)
    assert "audios" in refusal(lambda: frames.images)


@pytest.mark.parametrize("scale", [0.0, -2.0, 0.5, 1.0])
def test_guidance_below_one_is_guidance_off(stable_diffusion, scale):
    """Identity: the run is the conditional one, bit for bit; the scale in effect is 1."""
    model = denoscope.load(stable_diffusion)
    call = dict(seed=0, num_inference_steps=2, output_type="latent")
    trace = model.trace("a circle", guidance_scale=scale, **call)
    assert torch.equal(trace.images, model.trace("a circle", guidance_scale=1.0, **call).images)
    assert trace.guidance_in_effect(scale) == 1.0
    guided = model.trace("a circle", guidance_scale=3.0, **call)
    assert guided.guidance_in_effect(3.0) == 3.0 and guided.guidance_in_effect(None) is None


def test_guidance_of_latent_diffusion_counts_below_one():
    """That pipeline switches guidance off at 1 only."""
    model = denoscope.load(PIPELINES["latent-diffusion"]())
    trace = model.trace("a circle", height=64, width=64, guidance_scale=0.5, seed=0, num_inference_steps=2)
    assert trace.guidance_in_effect(0.5) == 0.5


def test_a_refusal_is_raised_anew_each_time(stable_diffusion):
    trace = denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=2)
    step = replace(trace[0], direct=None, refusal=ReplayError("It cannot be replayed."))
    for question in (lambda: step.replay, step.repeat, lambda: step.half(0)):
        assert refusal(question, kind=ReplayError) == "It cannot be replayed."
    assert torch.equal(step.predict(step.sample), step.model_output) and step.engine == "resumed in batches"
    alone = replace(step, run=None)
    assert "It cannot be replayed." in refusal(lambda: alone.predict(alone.sample), kind=ReplayError)
    assert step.picture(0).refusal is step.refusal and trace[0].refusal is None


def test_going_on_ends_where_the_schedulers_step_is_this_one(stable_diffusion):
    """Euler's step is DDIM's along σ; DDIM's own is, if it goes to x0 and its time steps are the recorded ones."""
    exact = {"set_alpha_to_one": True, "timestep_spacing": "leading"}
    for scheduler, apart in (
        (SCHEDULERS["euler"](), False),
        (SCHEDULERS["ddim"](**exact), False),
        (SCHEDULERS["ddim"](set_alpha_to_one=False), True),
        (SCHEDULERS["ddim"](set_alpha_to_one=True, timestep_spacing="linspace"), True),
    ):
        stable_diffusion.scheduler = scheduler
        trace = denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=7)
        with torch.no_grad():
            difference = float((trace.continued(0, trace[0].sample) - trace[-1].prev_sample).abs().max())
        assert (difference > 1e-3) == apart, (type(scheduler).__name__, difference)
    with pytest.raises(InputError, match="no step 7"):
        trace.continued(7, trace[0].sample)
