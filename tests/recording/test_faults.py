"""Faults that were once there, each by the case that showed it: the right value, or one paragraph that refuses."""

import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import small
import torch
from families.every import FAMILIES
from families.oracle import SEED, Seen, finished, numbers, relative, run, schedulers
from small import refusal

import denoscope
from denoscope.errors import DenoscopeError, InputError, ModelError, NumericsError, RecordingError, ReplayError
from denoscope.recording.decoding import PictureWarning
from denoscope.recording.hooks.modes import gradients
from denoscope.recording.recorder import SecondSamplingWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # by diffusers, in its own pipelines
    pytest.mark.filterwarnings("ignore:There are modules:UserWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of PIL, passed on by warns
]
TEXT = {"prompt": "a red circle", "num_inference_steps": 3}


def made(name: str) -> tuple[Any, dict[str, Any]]:
    pipeline = FAMILIES[name].build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, dict(FAMILIES[name].call())


def traced(name: str, **more: Any) -> denoscope.Trace:
    pipeline, call = made(name)
    torch.manual_seed(SEED)
    return denoscope.load(pipeline).trace(**{**call, **more}, seed=SEED)


def originals(trace: denoscope.Trace, seen: Seen) -> list[torch.Tensor | None]:
    """Return the scheduler's own clean predictions of a trace's steps; some pipelines make others beside them."""
    found = []
    for step in trace:
        rows = len(step.sample)
        place = next(i for i, output in enumerate(seen.outputs) if torch.equal(output[:rows], step.model_output))
        own = seen.originals[place]
        found.append(None if own is None else own[:rows])
    return found


# Wrong without complaint.

SCALED = ["sdxl-edm-euler", "sdxl-controlnet", "sdxl-pag", "sd-instruct-pix2pix", "sdxl-instruct-pix2pix",
          "video-stable-video", "marigold-depth", "marigold-normals"]  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_c1_c3_c4_clean_predictions_are_the_schedulers(name):
    """Oracle: `pred_original_sample` of the scheduler's own step: EDM, Euler without a direct engine, Marigold."""
    pipeline, call = made(name)
    seen, trace = run(pipeline, call), traced(name)
    for step, original in zip(trace, originals(trace, seen), strict=True):
        assert original is not None and relative(step.pred_original_sample, original) < 1e-5
        level = step.level
        again = level.noisy(step.pred_original_sample, level.noise(step.sample, step.model_output))
        assert relative(again, step.sample) < 1e-4


def test_c1_a_pipeline_that_preconditions_by_itself_has_no_level():
    """Cosmos hands its EDM scheduler the clean sample, not the network's output, so the scheduler's form is not its."""
    trace = traced("cosmos")
    for step in trace:
        message = refusal(lambda step=step: step.pred_original_sample, kind=ModelError)
        assert "EDMEulerScheduler" in message and refusal(lambda step=step: step.log_snr, kind=ModelError) == message


def test_c2_consistency_models_have_their_own_form():
    """Oracle: the noise-free part of the scheduler's step, whose last one adds no noise."""
    trace = traced("pixel-consistency")
    scheduler = trace.model.pipeline.scheduler
    scheduler.set_timesteps(len(trace))
    for step, sigma in zip(trace, scheduler.sigmas, strict=False):
        skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
        assert relative(step.pred_original_sample, skip * step.sample + out * step.model_output) < 1e-5
    last = trace[-1].pred_original_sample.clamp(-1, 1)  # as the scheduler clips it, before it adds no noise
    assert float(scheduler.sigmas[-1]) == pytest.approx(scheduler.config.sigma_min)
    assert relative(last, trace[-1].prev_sample) < 1e-4


def test_c2_a_flow_beyond_one_has_no_level():
    for step in traced("cosmos-2-image"):
        sigma = 1 - float(step.noise.alpha) if step.noise else None
        assert sigma is None or 0 <= sigma <= 1
    message = refusal(lambda: traced("cosmos-2-image")[0].log_snr, kind=ModelError)
    assert "its sigma 80 is none of flow matching" in message


DECODED = ["kandinsky-2", "kandinsky-2-img2img", "kandinsky-3", "wan", "sky-reels-v2", "mochi", "motif-video",
           "chrono-edit", "cosmos", "sdxl-edm-euler", "latent-super-resolution"]  # fmt: skip


@pytest.mark.parametrize("name", DECODED)
@torch.no_grad()
def test_c5_c6_c7_the_last_sample_decodes_to_the_picture(name):
    """Ground truth: the picture that the pipeline returned; movq, latents_mean, a scaling that is not applied."""
    trace = traced(name)
    picture = torch.from_numpy(numbers(trace.images))
    decoded = trace.decode(trace[-1].prev_sample).movedim(1, -1).double()
    assert decoded.shape == picture.shape and decoded.shape[-1] == 3
    assert float((decoded - picture).abs().max()) <= 1.01 / 255


@torch.no_grad()
def test_c8_sdxl_in_half_precision_decodes_as_its_pipeline_does():
    """Its autoencoder overflows in float16, and the pipeline brings it to float32."""
    pipeline = small.sdxl().to(torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.decoder.conv_in.weight.mul_(3e5)
    trace = denoscope.load(pipeline).trace(**TEXT, **small.SMALL, seed=SEED)
    picture = torch.from_numpy(numbers(trace.image)).movedim(-1, 0)
    decoded = trace.decode(trace[-1].prev_sample)[0].double()
    assert float((decoded - picture).abs().max()) <= 1.5 / 255 and torch.isfinite(trace[1].clean()).all()
    assert pipeline.vae.dtype == torch.float16


OF_PICTURES = [("flux", "transformer_blocks.0", (4, 6)), ("sd3", "transformer_blocks.1", (8, 12)),
               ("qwen-image", "transformer_blocks.0", (4, 6))]  # fmt: skip


@pytest.mark.parametrize("name, layers, grid", OF_PICTURES)
def test_c9_maps_of_layers_have_the_samples_grid(name, layers, grid):
    """Ground truth: the map follows the layer's picture tokens, so that it is not one number for all positions."""
    maps = denoscope.DFCam(layers=(layers,))(traced(name), steps=[1])
    saliency = maps.saliency if hasattr(maps, "saliency") else maps["saliency"]
    assert (saliency.sizes["y"], saliency.sizes["x"]) == grid and float(saliency.std()) > 0


def test_c10_dit_has_one_picture_for_doubled_samples():
    trace = traced("dit")
    assert trace.pictures == len(trace.images) == 1 and trace.picture(0).image == trace.image
    assert torch.equal(trace.picture(0)[1].sample, trace[1].sample)


def test_c11_relevance_does_not_average_the_frames_of_a_clip():
    assert "clip" in refusal(denoscope.Relevance(), traced("video-animatediff-pag"), steps=[1], kind=DenoscopeError)


# Raw exceptions.


@pytest.mark.parametrize("name", ["flux", "ltx", "wan", "video-text-to-video"])
def test_packed_samples_and_clips_have_maps(name):
    trace = traced(name)
    maps = denoscope.DFRise(num_masks=4)(trace, steps=[1])
    saliency = maps.saliency if hasattr(maps, "saliency") else maps["saliency"]
    assert tuple(saliency.sizes[dim] for dim in trace[1].layout.dims) == trace[1].layout.shape
    with torch.no_grad():
        clean = trace[1].clean()
        assert torch.isfinite(clean).all() and clean.shape == trace.decode(trace[-1].prev_sample).shape


@pytest.mark.parametrize("name", ["flux", "video-animatediff", "marigold-depth", "wan"])
def test_results_are_read_in_any_form(name):
    """Identity: the same call as a tuple has the same pictures."""
    as_object = traced(name)
    as_tuple = traced(name, return_dict=False)
    assert np.array_equal(numbers(as_tuple.images), numbers(as_object.images))
    assert len(as_object.picture(0).images) == as_object.pictures == 1


@pytest.mark.parametrize("name", ["flux", "flux-2", "qwen-image", "wan", "cogvideo", "ltx", "hunyuan-video"])
def test_relevance_of_any_text_encoding_is_given_or_refused(name):
    trace = traced(name)
    try:
        denoscope.Relevance()(trace, steps=[1])
    except DenoscopeError as error:
        assert "\n" not in str(error) and str(error).endswith(".")


@pytest.mark.parametrize("name", ["z-image", "z-image-img2img", "z-image-controlnet", "any-flow"])
@torch.no_grad()
def test_denoisers_of_lists_and_schedulers_of_other_signatures_are_recorded(name):
    """Oracle: a second run with a disturbed step; the recorded picture is the plain one."""
    pipeline, call = made(name)
    plain, other, trace = run(pipeline, call), run(pipeline, call, 0), traced(name)
    assert np.array_equal(numbers(trace.images), numbers(finished(plain.result)))
    assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) < 1e-5


def test_a_sampler_that_adds_noise_before_each_step_is_refused():
    """Karras et al.'s stochastic sampler hands its step a noisier sample than the one that the step before led to."""
    pipeline, call = made("pixel-karras-ve")
    plain, trace = run(pipeline, call), traced("pixel-karras-ve")
    assert np.array_equal(numbers(trace.images), numbers(finished(plain.result)))
    message = refusal(lambda: trace[1].predict(trace[1].sample), kind=ReplayError)
    assert "no argument timestep and no sample" in message and "another sample than the one in question" in message


def test_a_scheduler_without_a_step_is_named():
    pipeline, call = made("pixel-score-sde")
    message = refusal(lambda: denoscope.load(pipeline).trace(**call, seed=SEED), kind=RecordingError)
    assert "ScoreSdeVeScheduler.step was never called" in message
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_a_cache_that_is_on_is_played_back():
    """Oracle: a disturbed run. The cache decides by the numbers whether it computes, so only the pipeline knows."""
    pipeline, call = made("flux")
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.05))
    trace = denoscope.load(pipeline).trace(**call, seed=SEED)
    other = run(pipeline, call, 0)
    with torch.no_grad():
        assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) < 1e-5
        assert relative(trace[1].predict(trace[1].sample), trace[1].model_output) < 1e-5


def test_attention_slicing_is_heard_or_named():
    """Oracle for word maps: the same pipeline without slicing."""
    pipeline, call = made("sd-text")
    plain = denoscope.Words()(denoscope.load(pipeline).trace(**call, seed=SEED), [1])
    pipeline.enable_attention_slicing()
    trace = denoscope.load(pipeline).trace(**call, seed=SEED)
    sliced = denoscope.Words()(trace, [1])
    np.testing.assert_allclose(sliced.saliency, plain.saliency, atol=1e-5)
    message = refusal(denoscope.Relevance(), trace, steps=[1], kind=DenoscopeError)
    assert "SlicedAttnProcessor" in message and "disable_attention_slicing" in message


# Inputs of public reports.


@torch.no_grad()
def test_f3_nan_in_the_decoder_is_noticed(stable_diffusion):
    parameters = list(stable_diffusion.vae.decoder.parameters())
    own = parameters[-2].clone()
    parameters[-2].fill_(float("nan"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
            with pytest.warns(PictureWarning, match="pipe.vae .* NaN"):
                trace = denoscope.load(stable_diffusion).trace(**TEXT, seed=SEED)
        for question in (trace[1].clean, trace.clean_decoded, lambda: trace.decode(trace[-1].prev_sample)):
            assert "NaN" in refusal(question, kind=NumericsError)
        assert relative(trace[1].predict(trace[1].sample), trace[1].model_output) < 1e-4  # predictions are right
    finally:
        parameters[-2].copy_(own)


class Blackening(torch.nn.Module):
    """A safety checker that takes every picture for a bad one."""

    def forward(self, images, clip_input):
        return np.zeros_like(images) if isinstance(images, np.ndarray) else torch.zeros_like(images), [True]

    dtype, device = torch.float32, torch.device("cpu")


def test_f4_a_blackened_picture_is_not_explained(stable_diffusion):
    extractor = small.processor_named("CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    parts = {**stable_diffusion.components, "safety_checker": Blackening(), "feature_extractor": extractor}
    pipeline = diffusers.StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.warns(PictureWarning, match="safety checker"):
        trace = denoscope.load(pipeline).trace(**TEXT, seed=SEED)
    assert numbers(trace.image).max() == 0 and pipeline.safety_checker is parts["safety_checker"]
    assert "safety checker" in refusal(lambda: trace.decode(trace[-1].prev_sample), kind=ReplayError)
    assert "safety checker" in refusal(trace[1].clean, kind=ReplayError)


def test_f5_two_samplings_in_one_call(stable_diffusion):
    """Ground truth: the trace of the second sampling is that of a call that starts where the second one did."""

    class Twice(type(stable_diffusion)):
        def __call__(self, prompt, **kwargs):
            super().__call__(prompt, **kwargs)
            return super().__call__(prompt, **kwargs)

    pipeline = Twice(**stable_diffusion.components, requires_safety_checker=False)
    with pytest.warns(SecondSamplingWarning, match="sampled 2 times, in 3 and 3 steps"):
        trace = denoscope.load(pipeline).trace(**TEXT, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    stable_diffusion(**TEXT, generator=generator)
    second = denoscope.load(stable_diffusion).trace(**TEXT, generator=generator)
    assert [step.timestep for step in trace] == [step.timestep for step in second]
    for step, own in zip(trace, second, strict=True):
        assert torch.equal(step.sample, own.sample) and torch.equal(step.model_output, own.model_output)
        with torch.no_grad():
            assert relative(step.predict(2 * own.sample), own.predict(2 * own.sample)) < 1e-4
    assert trace[2].next_level is None and trace.image.tobytes() == second.image.tobytes()
    with torch.no_grad():
        torch.testing.assert_close(trace.continued(0, trace[0].sample), second.continued(0, second[0].sample))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_f9_a_part_without_numbers_is_named(part):
    pipeline = small.stable_diffusion()
    getattr(pipeline, part).to("meta")
    assert f"pipe.{part} " in refusal(lambda: denoscope.load(pipeline), kind=ModelError)


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale"])
@pytest.mark.parametrize("change", ["written", "replaced", "added"])
def test_f10_changed_weights_are_noticed_at_each_question(name, change):
    """Also at steps that were checked before, and whichever engine answers; undone, the answers are as before."""
    pipeline, call = made(name)
    trace = denoscope.load(pipeline).trace(**call, seed=SEED)
    questions = [lambda step=step: step.predict(step.sample) for step in trace]
    if name == "sd-text":
        questions += [trace[0].repeat, lambda: trace[0].half(1)]
    with torch.no_grad():
        before = [question() for question in questions]
        layer = pipeline.unet.conv_out
        if change == "written":
            layer.weight.mul_(2)
        else:
            other = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
            pipeline.unet.conv_out = (
                other if change == "replaced" else torch.nn.Sequential(layer, torch.nn.Conv2d(4, 4, 1))
            )
        for question in questions:
            assert "cannot be replayed" in refusal(question, kind=ReplayError)
        if change == "written":
            layer.weight.div_(2)
        pipeline.unet.conv_out = layer
        for question, answer in zip(questions, before, strict=True):
            again = question()
            assert (
                torch.equal(again(trace[0].sample), answer(trace[0].sample))
                if callable(answer)
                else torch.equal(again, answer)
            )


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale"])
def test_f12_inference_mode(name):
    """Identity: a run recorded under it, and one that is asked under it, have the gradients of any other."""
    pipeline, call = made(name)
    model = denoscope.load(pipeline)
    own = model.trace(**call, seed=SEED)
    with torch.inference_mode():
        recorded = model.trace(**call, seed=SEED)
        with gradients():
            inside = slope(own)
    outside = slope(own)
    assert torch.equal(recorded[-1].prev_sample, own[-1].prev_sample)
    assert torch.equal(outside, inside) and torch.equal(slope(recorded), outside)


def slope(trace: denoscope.Trace) -> torch.Tensor:
    sample = trace[1].sample.clone().requires_grad_()
    return torch.autograd.grad(trace[1].predict(sample).square().sum(), sample)[0]


@pytest.mark.parametrize("error", [OverflowError, AttributeError, KeyError, ZeroDivisionError, AssertionError])
def test_f15_exceptions_that_are_not_foreseen(stable_diffusion, error):
    """Before the first step the call is refused, after it the run has failed; with the pipeline as it was."""
    model, before = denoscope.load(stable_diffusion), [dict(vars(one)) for one in schedulers(stable_diffusion)]
    for index, kind in ((-1, InputError), (1, RecordingError)):

        def fail(pipeline, place, timestep, tensors, index=index):
            if place == index:
                raise error("strange")
            return tensors

        strange = {"callback_on_step_end": fail} if index >= 0 else {"prompt_embeds": Strange(error)}
        call = {**TEXT, **strange} if index >= 0 else {"num_inference_steps": 3, **strange}
        message = refusal(lambda call=call: model.trace(**call, seed=SEED), kind=kind)
        assert "strange" in message
    for one, values in zip(schedulers(stable_diffusion), before, strict=True):
        assert vars(one).keys() == values.keys() and all(vars(one)[key] is value for key, value in values.items())


class Strange:
    """An argument that fails when it is read."""

    def __init__(self, error: type[Exception]):
        self.error = error

    @property
    def shape(self) -> None:
        raise self.error("strange")
