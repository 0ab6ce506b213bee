"""Noise levels: closed form where the scheduler says them, one refusal where they are of another form."""

import math

import diffusers
import pytest
import torch
from small import BETAS, SCHEDULERS, refusal

import denoscope
from denoscope.errors import DenoscopeError, ModelError
from denoscope.recording.noise import noise_level

SIGMA_SCHEDULERS = {
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "kdpm2": diffusers.KDPM2DiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
}
BETAS_OF_SIGMAS = {key: value for key, value in BETAS.items() if key != "steps_offset"}


def traced(pipeline, prompt="a red circle", **call):
    return denoscope.load(pipeline).trace(prompt, seed=1, num_inference_steps=4, output_type="latent", **call)


@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of KDPM2 in diffusers
def test_levels_of_sigma_schedulers_are_the_closed_form(stable_diffusion, name):
    """Oracle: σ of the sample is what the scheduler's own scaling, 1 / sqrt(1 + σ²), was given for it."""
    scheduler = stable_diffusion.scheduler = SIGMA_SCHEDULERS[name](**BETAS_OF_SIGMAS)
    seen, scale_model_input = [], scheduler.scale_model_input

    def scaled(sample, timestep):
        result = scale_model_input(sample, timestep)
        if sample.ndim == 4:  # the pipeline's own call
            seen.append(float((result.double() * sample).sum() / sample.double().square().sum()))
        return result

    scheduler.scale_model_input = scaled
    for step, scale in zip(traced(stable_diffusion), seen, strict=True):
        assert step.level.alpha == pytest.approx(scale, rel=1e-5)
        assert step.level.scale == pytest.approx(scale, rel=1e-5)
        assert step.level.alpha**2 + step.level.sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_two_runs_of_one_schedule_have_equal_levels_in_half_precision(components, name, dtype):
    components.scheduler = SIGMA_SCHEDULERS[name](**BETAS_OF_SIGMAS)
    exact = [step.level for step in traced(components)]
    components.unet.to(dtype), components.text_encoder.to(dtype)
    try:
        runs = [traced(components, prompt) for prompt in ("a red circle", "a blue square")]
    finally:
        components.unet.float(), components.text_encoder.float()
    for run in runs:
        assert run[0].sample.dtype == dtype
        assert [step.level for step in run] == exact


def test_latents_of_zeros_are_replayed_scaled(stable_diffusion):
    """Oracle: the denoiser itself, given the sample divided by sqrt(1 + σ²)."""
    stable_diffusion.scheduler = SCHEDULERS["euler"]()
    step = traced(stable_diffusion, latents=torch.zeros(1, 4, 8, 8), guidance_scale=1.0)[0]
    sigma = float(stable_diffusion.scheduler.sigmas[0])
    other = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * sigma
    with torch.no_grad():
        text = step.replay.context
        expected = stable_diffusion.unet(other / math.sqrt(1 + sigma**2), step.timestep, text).sample
        torch.testing.assert_close(step.predict(other), expected, atol=1e-5, rtol=1e-5)


REFUSED = {
    "edm": lambda: diffusers.EDMEulerScheduler(),
    "edm, several steps": lambda: diffusers.EDMDPMSolverMultistepScheduler(),
    "consistency": lambda: diffusers.CMStochasticIterativeScheduler(),
    "ipndm": lambda: diffusers.IPNDMScheduler(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_level_of_another_form_is_refused_at_the_first_question(stable_diffusion, name):
    """The user's run goes on and its picture is the one without recording; only what needs the level is refused."""
    stable_diffusion.scheduler = REFUSED[name]()
    call = dict(num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    plain = stable_diffusion("a circle", generator=torch.Generator().manual_seed(1), **call).images
    trace = denoscope.load(stable_diffusion).trace("a circle", seed=1, **call)
    assert torch.equal(trace.images, plain)
    step = trace[1]
    for question in (
        lambda: step.level,
        lambda: step.log_snr,
        lambda: step.pred_original_sample,
        lambda: step.predict_original(step.sample),
        lambda: step.next_sample(step.sample),
        step.clean,
        trace.clean_decoded,
        lambda: trace.continued(0, trace[0].sample),
    ):
        message = refusal(question, kind=DenoscopeError)
        assert "noise level" in message and type(stable_diffusion.scheduler).__name__ in message
    torch.testing.assert_close(step.predict(step.sample), step.model_output, atol=1e-4, rtol=1e-4)


def test_a_flow_beyond_one_is_refused():
    """Cosmos 2 has a flow-match scheduler whose σ go to 80: 1 − σ is no alpha."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[80.0, 1.0, 0.5])
    assert "0 to 1" in refusal(lambda: noise_level(scheduler, 80.0, 0, 1.0), kind=ModelError)
    level = noise_level(scheduler, 500.0, 2, 1.0)
    assert (level.alpha, level.sigma) == (0.5, 0.5)


def test_a_run_that_is_not_replayed_has_the_schedulers_clean_prediction(stable_diffusion):
    """Oracle: pred_original_sample of Euler's own step, for a ControlNet, whose replay is refused."""
    control = diffusers.ControlNetModel.from_unet(stable_diffusion.unet, conditioning_embedding_out_channels=(8, 8, 8))
    parts = {**stable_diffusion.components, "controlnet": control, "scheduler": SCHEDULERS["euler"]()}
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    originals, own_step = [], pipeline.scheduler.step

    def step(*args, return_dict=True, **kwargs):
        result = own_step(*args, **kwargs)
        originals.append(result.pred_original_sample)
        return (result.prev_sample,)

    pipeline.scheduler.step = step
    trace = traced(pipeline, image=torch.zeros(1, 3, 64, 64), height=64, width=64)
    assert "ControlNet" in str(trace[0].refusal) and trace[0].level_refusal is None
    for recorded, original in zip(trace, originals, strict=True):
        torch.testing.assert_close(recorded.pred_original_sample, original, atol=1e-4, rtol=1e-4)
