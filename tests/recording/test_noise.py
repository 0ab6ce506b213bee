"""Noise levels: closed form where the scheduler says them, one refusal where they are of another form."""

import math

import diffusers
import pytest
import torch
from families.every import FAMILIES
from small import BETAS, SCHEDULERS, refusal

import denoscope
from denoscope.errors import DenoscopeError, ModelError, ReplayError
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


PRECONDITIONED = {
    "edm": lambda: diffusers.EDMEulerScheduler(),
    "edm, several steps": lambda: diffusers.EDMDPMSolverMultistepScheduler(),
    "edm, v-prediction": lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
    "consistency": lambda: diffusers.CMStochasticIterativeScheduler(),
}


def preconditioning(scheduler, sigma):
    """c_skip and c_out of Karras et al. 2022, table 1, and of consistency models, Song et al. 2023, appendix C."""
    data, least = scheduler.config.sigma_data, scheduler.config.sigma_min
    if isinstance(scheduler, diffusers.CMStochasticIterativeScheduler):
        near = sigma - least
        return data**2 / (near**2 + data**2), data * near / math.hypot(sigma, data)
    sign = -1 if scheduler.config.prediction_type == "v_prediction" else 1
    return data**2 / (sigma**2 + data**2), sign * sigma * data / math.hypot(sigma, data)


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_preconditioned_outputs_are_the_closed_form(stable_diffusion, name):
    """Oracle: the papers' own formulas, of the levels that `sigmas` says; noise and clean sample make the sample."""
    scheduler = stable_diffusion.scheduler = PRECONDITIONED[name]()
    trace = traced(stable_diffusion, guidance_scale=1.0)
    other = 3 * torch.randn(trace[0].sample.shape, generator=torch.Generator().manual_seed(3))
    for step, sigma in zip(trace, scheduler.sigmas.tolist()[:4], strict=True):
        skip, out = preconditioning(scheduler, sigma)
        for sample, prediction in ((step.sample, step.model_output), (other, step.predict(other).detach())):
            clean = step.level.original(sample, prediction)
            torch.testing.assert_close(clean, skip * sample + out * prediction, atol=1e-4, rtol=1e-4)
            noise = step.level.noise(sample, prediction)
            torch.testing.assert_close(clean + sigma * noise, sample, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(step.level.noisy(clean, noise), sample, atol=1e-3, rtol=1e-4)
        assert step.log_snr == pytest.approx(-2 * math.log(sigma), abs=1e-5)


@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_the_clean_prediction_of_edm_is_the_schedulers(stable_diffusion, kind):
    """Oracle: what Euler's step returns beside the next sample, and what the multistep one converts the output to."""
    scheduler = stable_diffusion.scheduler = kind()
    trace = traced(stable_diffusion)
    fresh = kind()
    fresh.set_timesteps(4)
    for step in trace:
        if kind is diffusers.EDMEulerScheduler:
            arguments = step.model_output, fresh.timesteps[step.index], step.sample
            own = fresh.step(*arguments).pred_original_sample
        else:
            fresh._step_index = step.index
            own = fresh.convert_model_output(step.model_output, sample=step.sample)
        torch.testing.assert_close(step.pred_original_sample, own, atol=1e-4, rtol=1e-4)
    assert vars(scheduler).keys() == vars(trace.model.pipeline.scheduler).keys()


def test_a_level_of_another_form_is_refused_at_the_first_question(stable_diffusion):
    """The user's run goes on and its picture is the one without recording; only what needs the level is refused."""
    stable_diffusion.scheduler = diffusers.IPNDMScheduler()
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


def test_a_run_that_only_the_pipeline_replays_has_the_schedulers_clean_prediction():
    """Oracle: pred_original_sample of Euler's own step, for a ControlNet, whose denoiser alone is refused."""
    family = FAMILIES["sd-controlnet"]
    pipeline = family.build()
    pipeline.scheduler = SCHEDULERS["euler"]()
    originals, own_step = [], pipeline.scheduler.step

    def step(*args, return_dict=True, **kwargs):
        result = own_step(*args, **kwargs)
        originals.append(result.pred_original_sample)
        return (result.prev_sample,)

    pipeline.scheduler.step = step
    trace = denoscope.load(pipeline).trace(**family.call(), seed=1)
    originals = originals[: len(trace)]
    assert "ControlNet" in refusal(lambda: trace[0].replay, kind=ReplayError) and trace[0].level_refusal is None
    for recorded, original in zip(trace, originals, strict=True):
        torch.testing.assert_close(recorded.pred_original_sample, original, atol=1e-4, rtol=1e-4)


def test_the_cosine_level_is_what_the_scheduler_adds_and_takes_away():
    """Oracle: Würstchen's own add_noise, and the mean of its step: at the last one ᾱ of the next time is near 1."""
    scheduler = diffusers.DDPMWuerstchenScheduler()
    scheduler.set_timesteps(4)
    rng = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 4, 3, 3, generator=rng) for _ in range(2))
    for time in (1.0, 0.5, 0.25):
        level = noise_level(scheduler, time, None, 1.0)
        noisy = scheduler.add_noise(clean, noise, torch.tensor([time]))
        torch.testing.assert_close(level.noisy(clean, noise), noisy, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(level.original(noisy, noise), clean, atol=1e-3, rtol=1e-3)
    last = scheduler.step(noise, torch.tensor([0.25]), noisy).prev_sample  # with the true noise: to ᾱ = 0.9999
    torch.testing.assert_close(last, clean, atol=0.05, rtol=0.05)
