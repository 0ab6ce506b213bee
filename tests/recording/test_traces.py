"""Recording leaves everything as it was; replaying gives what the scheduler received."""

import inspect
import math
from copy import copy
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from families.every import FAMILIES
from families.oracle import SEED, run
from small import BETAS, PIPELINES, SCHEDULERS, conditional_unet, refusal

import denoscope
from denoscope.errors import InputError, NumericsError, RecordingError, ReplayError, ScheduleError
from denoscope.recording import schedules
from denoscope.recording.hooks.calls import ModuleCall, SchedulerStep
from denoscope.recording.hooks.layers import randomised
from denoscope.recording.hooks.replay import Replay


def call_of(name, **kwargs):
    text = {"prompt": "a red circle"} if name in ("stable-diffusion", "latent-diffusion") else {}
    size = {"height": 64, "width": 64} if name == "latent-diffusion" else {}
    return {**text, **size, "num_inference_steps": 4, **kwargs}


def relative(a, b):
    return float((a - b).detach().abs().max() / b.abs().max())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", PIPELINES)
def test_picture_is_unchanged_and_every_step_replays(name, scheduler):
    pipeline = PIPELINES[name]()
    pipeline.scheduler = SCHEDULERS[scheduler]()
    if name == "ddim" and scheduler != "ddim":
        pytest.skip("DDIMPipeline turns every scheduler into DDIM")
    if name == "ddpm" and scheduler in ("pndm", "unipc"):
        pytest.skip("DDPMPipeline passes a generator, which this scheduler's step does not take")
    torch.manual_seed(0)  # the latent-diffusion pipeline lets DDPM draw from the global generator
    plain = pipeline(**call_of(name), generator=torch.Generator().manual_seed(3), output_type="np").images
    before = dict(vars(pipeline.scheduler))
    torch.manual_seed(0)
    trace = denoscope.load(pipeline).trace(**call_of(name), seed=3, output_type="np")
    assert np.array_equal(trace.images, plain)
    assert set(vars(pipeline.scheduler)) == set(before) and not pipeline.unet._forward_hooks
    for step in trace:
        assert relative(step.predict(step.sample), step.model_output) < 1e-5
        many = step.predict(step.sample.repeat(3, 1, 1, 1))
        assert relative(many, step.model_output.expand_as(many)) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_clean_prediction_is_the_schedulers(stable_diffusion, scheduler, prediction_type):
    """Oracle: what the scheduler itself returns or keeps as its prediction of the clean sample."""
    if scheduler == "pndm" and prediction_type == "sample":
        pytest.skip("PNDM has no prediction_type sample")
    stable_diffusion.scheduler = SCHEDULERS[scheduler](prediction_type=prediction_type)
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=5)
    for step in trace:
        assert relative(step.pred_original_sample, schedulers_own(trace, step)) < 1e-4
        noisy = step.level.alpha * step.pred_original_sample
        noisy = noisy + step.level.sigma * step.level.noise(step.sample, step.model_output)
        assert relative(noisy, step.level.scale * step.sample) < 1e-4
    assert all(a.log_snr < b.log_snr for a, b in pairwise(trace) if a.timestep > b.timestep)


def schedulers_own(trace, step):
    """Walk a fresh scheduler over the recorded predictions up to this step and ask it for its clean prediction."""
    scheduler = type(trace.model.pipeline.scheduler).from_config(trace.model.pipeline.scheduler.config)
    if hasattr(scheduler, "convert_model_output"):
        scheduler.set_timesteps(5)
        scheduler._step_index = step.index
        return scheduler.convert_model_output(step.model_output, sample=step.sample)
    if type(scheduler).__name__ == "PNDMScheduler":
        a = scheduler.alphas_cumprod[int(step.timestep)]
        if scheduler.config.prediction_type == "v_prediction":
            return a.sqrt() * step.sample - (1 - a).sqrt() * step.model_output
        return (step.sample - (1 - a).sqrt() * step.model_output) / a.sqrt()
    scheduler.set_timesteps(5)
    return scheduler.step(step.model_output, scheduler.timesteps[step.index], step.sample).pred_original_sample


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=3.0, negative_prompt="a blue square"),
        dict(height=48, width=32),
        dict(num_images_per_prompt=3),
        dict(prompt=["a red circle", "a blue square"], guidance_scale=7.5),
        dict(prompt=["a red circle", "a blue square"], num_images_per_prompt=2, guidance_scale=1.0),
    ],
    ids=["no guidance", "negative prompt", "non-square", "several pictures", "batch", "batch of several"],
)
def test_calls_of_stable_diffusion_replay(stable_diffusion, kwargs):
    trace = denoscope.load(stable_diffusion).trace(**{"prompt": "a circle", **kwargs}, seed=0, num_inference_steps=3)
    for step in trace:
        assert relative(step.predict(step.sample), step.model_output) < 1e-5
    for index in range(trace.pictures):
        step = trace.picture(index)[1]
        two = step.predict(step.sample.repeat(2, 1, 1, 1))
        assert relative(two[1:], trace[1].model_output[index : index + 1]) < 1e-4


def test_pictures_of_a_batch_share_what_steps_share(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    short, long = (
        model.trace(["a circle", "a square"], seed=0, num_inference_steps=n, output_type="latent").picture(1)
        for n in (2, 6)
    )
    samples = 3 * short[0].sample.nbytes
    assert long.nbytes - short.nbytes < 4 * 1.5 * samples


def refuses_direct(step, said):
    """True if the direct engine is refused for this reason, while the pipeline itself answers."""
    return said in refusal(lambda: step.replay, kind=ReplayError) and step.engine.startswith("resumed")


def test_controlnet_is_answered_by_the_pipeline():
    """Oracle: a second run of the pipeline, one step of which is disturbed; its ControlNet reads the sample too."""
    pipeline, call = FAMILIES["sd-controlnet"].build(), FAMILIES["sd-controlnet"].call()
    trace, other = denoscope.load(pipeline).trace(**call, seed=SEED), run(pipeline, call, 0)
    assert refuses_direct(trace[1], "as ControlNet does")
    with torch.no_grad():
        assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) < 1e-5
        stale = trace[1].direct(other.samples[1])  # the ControlNet's outputs for the recorded sample
    assert relative(stale, other.outputs[1]) > 1e-3


def test_guidance_is_the_one_asked_for(stable_diffusion):
    trace = denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=2, guidance_scale=5.5)
    assert [step.replay.weight for step in trace] == pytest.approx([5.5, 5.5], abs=1e-3)


def test_prediction_is_differentiable(trace):
    """Oracle: the directional derivative by central differences, in double precision."""
    pipeline = trace.model.pipeline
    pipeline.unet.double(), pipeline.text_encoder.double()
    try:
        step = denoscope.load(pipeline).trace("a red circle", seed=1, num_inference_steps=2, output_type="latent")[1]
        x = step.sample.double().requires_grad_()
        (gradient,) = torch.autograd.grad(step.predict(x).square().sum(), x)
        along, h = torch.randn_like(gradient), 1e-5
        with torch.no_grad():
            up, down = (step.predict(x + sign * h * along).square().sum() for sign in (1, -1))
        assert float((gradient * along).sum()) == pytest.approx(float((up - down) / (2 * h)), rel=1e-5)
    finally:
        pipeline.unet.float(), pipeline.text_encoder.float()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_next_sample_is_the_step_of_ddim(stable_diffusion, prediction_type):
    """Oracle: DDIMScheduler.step with η = 0, for the sample itself and for others."""
    stable_diffusion.scheduler = SCHEDULERS["ddim"](prediction_type=prediction_type)
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=4)
    assert [step.next_level for step in trace] == [*[step.level for step in trace[1:]], None]
    for step in trace:
        assert relative(step.next_sample(step.sample), step.prev_sample) < 1e-5
        others = step.sample * torch.tensor([0.5, 1.5])[:, None, None, None]
        predicted = step.predict(others).detach()
        expected = stable_diffusion.scheduler.step(predicted, int(step.timestep), others).prev_sample
        assert relative(step.next_sample(others), expected) < 1e-5


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "ddim"])
def test_next_sample_has_the_noise_of_the_next_step(stable_diffusion, scheduler):
    """Identity: seen from the next step, x0 and ε of what it is made of come back; no scheduler is asked or changed."""
    stable_diffusion.scheduler = SCHEDULERS[scheduler]()
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=4)
    before = {name: (value, copy(value)) for name, value in vars(stable_diffusion.scheduler).items()}
    for step, after in pairwise(trace):
        next_sample, level = step.next_sample(step.sample), after.level
        noise = step.level.noise(step.sample, step.model_output)
        assert relative(level.noise(next_sample, noise), noise) < 1e-5
        assert relative(level.original(next_sample, noise), step.pred_original_sample) < 1e-4
    last = trace[-1]
    assert relative(last.next_sample(last.sample), last.pred_original_sample) < 1e-5
    assert vars(stable_diffusion.scheduler).keys() == before.keys()
    for name, (value, content) in before.items():
        assert vars(stable_diffusion.scheduler)[name] is value
        assert not isinstance(value, list) or all(a is b for a, b in zip(value, content, strict=True))


@pytest.mark.parametrize("scheduler", [diffusers.EulerDiscreteScheduler, diffusers.FlowMatchEulerDiscreteScheduler])
def test_next_sample_is_eulers_step(stable_diffusion, scheduler):
    """Oracle: without random churn, Euler's step along σ is DDIM's, for scaled samples and for flows."""
    trace = denoscope.load(with_scheduler(stable_diffusion, scheduler())).trace(
        "a red circle", seed=1, num_inference_steps=4
    )
    for step in trace:
        assert relative(step.next_sample(step.sample), step.prev_sample) < 1e-5


def with_scheduler(pipeline, scheduler):
    pipeline.scheduler = scheduler
    if "init_noise_sigma" not in dir(scheduler):  # Stable Diffusion scales its first sample by it
        scheduler.init_noise_sigma = 1.0
        scheduler.scale_model_input = lambda sample, timestep: sample
    return pipeline


def test_next_sample_of_one_picture_is_that_of_the_batch(stable_diffusion):
    batch = denoscope.load(stable_diffusion).trace(["a circle", "a square"], seed=0, num_inference_steps=3)
    for step, whole in zip(batch.picture(1), batch, strict=True):
        assert relative(step.next_sample(step.sample), whole.next_sample(whole.sample)[1:].detach()) < 1e-4


def test_replay_does_not_depend_on_order_or_repetition(trace):
    first = trace[2].predict(trace[2].sample)
    trace[0].predict(trace[0].sample)
    assert torch.equal(trace[2].predict(trace[2].sample), first)


def test_rescaled_guidance_is_answered_by_the_pipeline(stable_diffusion):
    """Oracle: a second run of the pipeline; its factor depends on the sample, so no fixed mixture is right."""
    call = dict(prompt="a circle", num_inference_steps=3, guidance_scale=7.5, guidance_rescale=0.7)
    trace, other = denoscope.load(stable_diffusion).trace(**call, seed=SEED), run(stable_diffusion, call, 0)
    assert refuses_direct(trace[1], "as guidance_rescale does")
    with torch.no_grad():
        assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) < 1e-5


def small_dit():
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        out_channels=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_embeds_ada_norm=1000,
    )
    torch.nn.init.normal_(transformer.proj_out_2.weight, std=0.1)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    pipeline = diffusers.DiTPipeline(transformer, vae, SCHEDULERS["ddim"](), id2label={0: "cat", 1: "dog"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_dit_is_answered_by_the_pipeline():
    """Oracle: a second run, its samples doubled for guidance. DiT guides three of its channels with one half."""
    pipeline = small_dit()
    call = dict(class_labels=[0, 1], num_inference_steps=3, guidance_scale=4.0)
    trace, other = denoscope.load(pipeline).trace(**call, seed=SEED), run(pipeline, call, 0)
    assert trace.pictures == 2 and torch.equal(other.samples[1][:2], other.samples[1][2:])
    with torch.no_grad():
        assert relative(trace[1].predict(other.samples[1][:2]), other.outputs[1][:2]) < 1e-5


def test_nothing_stays_behind_after_an_exception(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    for error in (StopIteration, KeyboardInterrupt):
        start = 0 if error is StopIteration else 1

        def callback(pipe, index, timestep, kwargs, error=error, start=start):
            if index == start:
                raise error("stop")
            return kwargs

        with pytest.raises(error):
            model.trace("a circle", seed=0, num_inference_steps=3, callback_on_step_end=callback)
        assert not stable_diffusion.unet._forward_hooks
        assert "step" not in vars(stable_diffusion.scheduler) and "set_timesteps" not in vars(
            stable_diffusion.scheduler
        )


def test_a_failure_after_a_step_is_not_the_users_slip(stable_diffusion):
    def callback(pipe, index, timestep, kwargs):
        raise RuntimeError("the cable was pulled")

    with pytest.raises(RecordingError, match="failed after 1 of its steps: the cable was pulled"):
        denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=3, callback_on_step_end=callback)


def test_recordings_do_not_nest(stable_diffusion):
    model = denoscope.load(stable_diffusion)

    def inner(pipe, index, timestep, kwargs):
        model.trace("a square", seed=0, num_inference_steps=1)

    with pytest.raises(RecordingError, match="nested"):
        model.trace("a circle", seed=0, num_inference_steps=2, callback_on_step_end=inner)
    assert not stable_diffusion.unet._forward_hooks


def test_conditioning_and_samples_are_stored_once(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    short, long = (model.trace("a circle", seed=0, num_inference_steps=n) for n in (4, 24))
    sample, text = short[0].sample.nbytes, short[0].replay.kwargs["encoder_hidden_states"].nbytes
    timestep = 8
    assert short.nbytes <= text + (2 * 4 + 1) * sample + 4 * timestep
    assert (long.nbytes - short.nbytes) / 20 <= 2 * sample + timestep


def test_nan_names_the_step():
    pipeline = PIPELINES["ddpm"]()
    times = []

    def poison(module, args, output):
        times.append(1)
        if len(times) == 3:
            output.sample[:] = float("nan")

    pipeline.unet.register_forward_hook(poison)
    with pytest.raises(NumericsError, match="step 2 "):
        denoscope.load(pipeline).trace(seed=0, num_inference_steps=4)


def test_free_grids_reach_the_scheduler_and_fixed_ones_are_refused(stable_diffusion):
    model, grid = denoscope.load(stable_diffusion), [900, 500, 100]
    for name in ("ddpm", "dpm-solver++", "euler"):
        stable_diffusion.scheduler = SCHEDULERS[name]()
        assert [step.timestep for step in model.trace("a circle", seed=0, schedule=grid)] == grid
    for name in ("ddim", "pndm", "unipc"):
        stable_diffusion.scheduler = SCHEDULERS[name]()
        with pytest.raises(ScheduleError, match="DPMSolverMultistepScheduler"):
            model.trace("a circle", seed=0, schedule="early", num_inference_steps=5)
    pixels = PIPELINES["ddpm"]()
    assert [step.timestep for step in denoscope.load(pixels).trace(seed=0, schedule=grid)] == grid


def test_generator_and_seed_are_the_same_and_exclude_each_other(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    a = model.trace("a circle", seed=5, num_inference_steps=2)
    b = model.trace("a circle", generator=torch.Generator().manual_seed(5), num_inference_steps=2)
    assert torch.equal(a[1].prev_sample, b[1].prev_sample)
    with pytest.raises(InputError, match="one of them"):
        model.trace("a circle", seed=5, generator=torch.Generator())


def test_extra_input_channels_are_kept():
    """Inpainting models read mask channels behind the sample."""
    torch.manual_seed(0)
    unet = conditional_unet(in_channels=9)
    sample, extra, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8, 8), torch.randn(2, 6, 32)
    other = torch.randn(2, 4, 8, 8)

    def guided(sample):
        seen = torch.cat([torch.cat([sample, extra], 1)] * 2)
        output = unet(seen, torch.tensor(10), encoder_hidden_states=text).sample
        return seen, output, output[:1] + 4.0 * (output[1:] - output[:1])

    with torch.no_grad():
        seen, output, received = guided(sample)
        call = ModuleCall("unet", unet, (seen, torch.tensor(10)), {"encoder_hidden_states": text}, output)
        replay = Replay.of([call], SchedulerStep(received, 10.0, sample, sample, None), None)
        assert replay.weight == pytest.approx(4, rel=1e-5) and not replay.single.is_whole
        expected = torch.cat([guided(one[None])[2] for one in other])
        assert relative(replay(other), expected) < 1e-5


def test_halves_are_what_guidance_mixes(trace):
    """u + w (c − u) of the two halves is the prediction; what each reads is half of what the denoiser read."""
    step = trace[1]
    u, c = (step.half(copy)(step.sample) for copy in (0, 1))
    torch.testing.assert_close(u + step.replay.weight * (c - u), step.model_output, atol=1e-5, rtol=1e-5)
    contexts = [step.replay.half(copy).context for copy in (0, 1)]
    assert torch.equal(torch.cat(contexts), step.replay.context)
    direct = trace.model.denoiser(step.sample, step.timestep, encoder_hidden_states=contexts[1]).sample
    torch.testing.assert_close(c, direct, atol=1e-5, rtol=1e-5)


SWAPS = ["ddpm", "dpm-solver++", "dpm-solver++-single", "euler", "heun", "ddim", "pndm", "unipc", "deis", "lms",
         "euler-ancestral", "lcm", "tcd"]  # fmt: skip
LATENTS = dict(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True)


@pytest.mark.parametrize("name", SWAPS)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of DEIS in diffusers
def test_a_swapped_run_is_the_run_with_that_scheduler(stable_diffusion, name):
    """Oracle: the same pipeline given that scheduler by hand; its own is back afterwards."""
    model, own, config = denoscope.load(stable_diffusion), stable_diffusion.scheduler, dict(stable_diffusion.config)
    swapped = model.trace("a circle", seed=3, num_inference_steps=5, scheduler=name)
    assert model.pipeline.scheduler is own and dict(stable_diffusion.config) == config
    assert swapped.call["scheduler"] == name and model.scheduler_name() == "DPMSolverMultistepScheduler"
    kind = getattr(diffusers, model.scheduler_name(name))
    known = inspect.signature(kind).parameters
    stable_diffusion.scheduler = kind(**{key: value for key, value in (BETAS | LATENTS).items() if key in known})
    by_hand = model.trace("a circle", seed=3, num_inference_steps=5)
    assert [step.timestep for step in swapped] == [step.timestep for step in by_hand]
    assert torch.equal(swapped[-1].prev_sample, by_hand[-1].prev_sample)
    for step in swapped:
        assert relative(step.predict(step.sample), step.model_output) < 1e-4


GRIDS = [(name, grid) for name in ("ddpm", "dpm-solver++", "euler") for grid in ("early", "late")]


@pytest.mark.parametrize("name, schedule", [*GRIDS, ("dpm-solver++-single", "band:600")])
def test_every_schedule_runs_and_replays_on_every_free_grid(stable_diffusion, name, schedule):
    """Ground truth: the time steps are the schedule's; identity: each step replays, its noise is that of its time."""
    stable_diffusion.scheduler = SCHEDULERS["pndm"]()
    model = denoscope.load(stable_diffusion)
    trace = model.trace("a circle", seed=3, num_inference_steps=6, schedule=schedule, scheduler=name)
    expected = schedules.resolve(schedule, 6)
    assert [step.timestep for step in trace] == expected
    assert model.step_count(6, schedule, None, name) == len(trace)
    products = stable_diffusion.scheduler.alphas_cumprod
    for step in trace:
        assert relative(step.predict(step.sample), step.model_output) < 1e-4
        product = float(products[int(step.timestep)])
        assert step.log_snr == pytest.approx(math.log(product / (1 - product)), abs=2e-3)


def test_heun_calls_the_denoiser_twice_for_most_time_steps(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    trace = model.trace("a circle", seed=3, schedule=[900, 500, 100], scheduler="heun")
    assert [step.timestep for step in trace] == [900, 500, 500, 100, 100]
    assert model.step_count(6, [900, 500, 100], None, "heun") == 5


def test_the_scheduler_is_back_whatever_happens(stable_diffusion):
    model, own = denoscope.load(stable_diffusion), stable_diffusion.scheduler

    def callback(pipe, index, timestep, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.trace("a circle", seed=0, num_inference_steps=3, scheduler="euler", callback_on_step_end=callback)
    assert stable_diffusion.scheduler is own and "step" not in vars(own)


def flow_matching(pipeline):
    """The same pipeline as if its model had been trained for flow matching."""
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipeline


@pytest.mark.parametrize(
    "made, call, said",
    [
        (lambda p: p, dict(scheduler="euller"), 'Did you mean "euler"'),
        (lambda p: p, dict(scheduler="ddim", schedule="early"), "scheduler='dpm-solver++'"),
        (flow_matching, dict(scheduler="ddpm"), "flow matching"),
    ],
)
def test_a_swap_that_cannot_be(stable_diffusion, made, call, said):
    model = denoscope.load(made(stable_diffusion))
    own = model.pipeline.scheduler
    message = refusal(model.trace, "a circle", seed=0, num_inference_steps=3, kind=ScheduleError, **call)
    assert said in message and model.pipeline.scheduler is own
    call["schedule"] = call.get("schedule", "uniform")
    assert refusal(model.step_count, 3, kind=ScheduleError, **call) == message


def test_a_pipeline_that_does_not_scale_is_not_swapped_to_one_that_must():
    """DDPMPipeline hands samples on as they are: with Euler's it would make a wrong picture and say nothing."""
    model = denoscope.load(PIPELINES["ddpm"]())
    assert "does not scale" in refusal(
        model.trace, seed=0, num_inference_steps=3, scheduler="euler", kind=ScheduleError
    )
    trace = model.trace(seed=0, num_inference_steps=3, schedule="late", scheduler="dpm-solver++")
    assert [step.timestep for step in trace] == schedules.late(3)


@pytest.mark.parametrize("name, values", [("timesteps", [999, 500]), ("sigmas", [14.0, 2.0])])
def test_a_schedule_beside_the_pipelines_own_time_steps_is_refused(stable_diffusion, name, values):
    model = denoscope.load(stable_diffusion)
    asked = {"schedule": "early", "num_inference_steps": 3, name: values}
    assert f"own {name} were given" in refusal(model.trace, "a red circle", seed=0, **asked)


def test_a_replay_that_failed_under_other_weights_is_right_again_afterwards(stable_diffusion):
    """A refusal is not remembered: the network may be changed for a while, as the sanity checks do."""
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=3)
    layer = next(name for name, _ in trace.model.denoiser.named_modules() if name == "conv_out")
    with randomised(trace.model.denoiser, [layer]):
        assert "cannot be replayed" in refusal(trace[1].predict, trace[1].sample, kind=ReplayError)
    assert torch.allclose(trace[1].predict(trace[1].sample), trace[1].model_output, atol=1e-4)


def test_a_repeated_step_is_checked_already(stable_diffusion):
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=3)
    calls: list[int] = []
    with torch.no_grad():
        trace[1].repeat()
    assert trace[1].asked_engine == "direct"
    handle = trace.model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        trace[1].predict(trace[1].sample)
    handle.remove()
    assert len(calls) == 1
