"""Engines: which one answers for a step, held against the pipelines themselves with other samples."""

import random
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from families.every import FAMILIES
from families.oracle import SEED, Seen, finished, relative, run
from small import refusal
from transformers.modeling_outputs import BaseModelOutput

import denoscope
from denoscope.errors import ReplayError
from denoscope.recording.hooks.trees import copied
from denoscope.recording.reading import read_run

DIRECT, BATCHES, ALONE, START = "direct", "resumed in batches", "resumed one by one", "resumed from the start"
ENGINES = {
    "sd-text": (DIRECT, DIRECT),
    "sd-rescale": (BATCHES, BATCHES),
    "sd-pag": (BATCHES, BATCHES),
    "sd-controlnet": (BATCHES, BATCHES),
    "sd-t2i-adapter": (DIRECT, DIRECT),
    "sd-instruct-pix2pix": (BATCHES, BATCHES),
    "dit": (ALONE, ALONE),
    "flux-true-cfg": (DIRECT, DIRECT),
    "wan-2.2": (DIRECT, DIRECT),
    "z-image": (BATCHES, ALONE),
    "sd-sag": (BATCHES, START),
    "sd-semantic": (DIRECT, START),
    "kandinsky-2-combined": (DIRECT, DIRECT),
    "cosmos": (BATCHES, BATCHES),
}
"""The engines of the first step and of later ones."""
SINGLE = {"flux-true-cfg", "wan-2.2", "z-image", "cosmos"}
"""Families whose networks compute in single precision here and there, whatever they are given."""
AS_ARRAYS = {"dit", "kandinsky-2-combined"}
"""Families that make no tensors with values from 0 to 1."""
# Three of diffusers' pipelines hand on arguments or call methods that diffusers has deprecated, and the combined one
# samples twice.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{start}")
    for start in (
        "`callback_steps` is deprecated",
        "The decode_latents method is deprecated",
        "This call sampled 2 times",
    )
]


@dataclass(frozen=True)
class Run:
    """A pipeline with a plain run, the recording of that run, and the places of the recording's steps in the run."""

    pipeline: Any
    call: dict[str, Any]
    plain: Seen
    trace: denoscope.Trace
    places: tuple[int, ...]

    def disturbed(self, index: int, **more: Any) -> Seen:
        """Return a run in which the sample that a step leads to is disturbed."""
        return run(self.pipeline, self.call, self.places[index], **more)


def recorded(name: str, **more: Any) -> Run:
    pipeline, call = FAMILIES[name].build(), dict(FAMILIES[name].call()) | more
    pipeline.set_progress_bar_config(disable=True)
    plain = run(pipeline, call)
    torch.manual_seed(SEED)
    trace = denoscope.load(pipeline).trace(**call, seed=SEED)
    return Run(pipeline, call, plain, trace, tuple(place_of(step, plain) for step in trace))


def place_of(step: denoscope.Step, plain: Seen) -> int:
    """Return the place of a recorded step among all calls of `scheduler.step`: some are made beside the sampling."""
    rows = len(step.sample)
    pairs = zip(plain.samples, plain.outputs, strict=True)
    same = (step.sample, step.model_output)
    return next(
        place for place, pair in enumerate(pairs) if all(map(torch.equal, (part[:rows] for part in pair), same))
    )


once = cache(recorded)


def another_first(whole: Run) -> Seen:
    """Return a run with another first sample and the same conditioning, which a prior draws with the generator."""
    generator = torch.Generator().manual_seed(SEED + 1)
    decoder = getattr(whole.pipeline, "decoder_pipe", None)
    if decoder is None:
        return run(whole.pipeline, whole.call, generator=generator)
    first = torch.randn(whole.trace[0].sample.shape, generator=generator)
    decoder.prepare_latents = lambda *args, **kwargs: first
    try:
        return run(whole.pipeline, whole.call)
    finally:
        del decoder.prepare_latents


def allowed(engine: str) -> float:
    return 1e-4 if engine == DIRECT else 1e-5


@pytest.mark.parametrize("name", ENGINES)
@torch.no_grad()
def test_predictions_for_other_samples_are_the_pipelines(name):
    """Oracle: runs whose first sample, or whose first step's result, is another."""
    whole = once(name)
    trace, rows = whole.trace, len(whole.trace[0].sample)
    assert [step.engine for step in trace] == [ENGINES[name][0], *ENGINES[name][1:] * (len(trace) - 1)]
    for index, other in ((0, another_first(whole)), (1, whole.disturbed(0))):
        sample, output = (part[whole.places[index]][:rows] for part in (other.samples, other.outputs))
        assert relative(sample, trace[index].sample) > 0.01
        assert relative(trace[index].predict(sample), output) <= allowed(trace[index].engine)
        assert trace[index].asked_engine == trace[index].engine


@pytest.mark.parametrize("name", ENGINES)
@torch.no_grad()
def test_several_samples_at_once_are_those_one_by_one(name):
    trace = once(name).trace
    for step in (trace[0], trace[-1]):
        noise = torch.randn(3, *step.sample.shape[1:], generator=torch.Generator().manual_seed(4))
        samples = step.sample + 0.3 * step.sample.std() * noise
        together = step.predict(samples)
        for sample, prediction in zip(samples, together, strict=True):
            assert relative(prediction[None], step.predict(sample[None])) <= allowed(step.engine)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.filterwarnings("ignore:There are modules:UserWarning")
def test_gradients_are_central_differences(name):
    """Oracle: the slope along one direction, in double precision where the network computes in it throughout."""
    pipeline, call = FAMILIES[name].build(), FAMILIES[name].call()
    pipeline.set_progress_bar_config(disable=True)
    dtype, reach, loose = (torch.float32, 1e-2, 2e-2) if name in SINGLE else (torch.float64, 1e-5, 2e-6)
    step = denoscope.load(pipeline.to(dtype)).trace(**call, seed=SEED)[1]
    sample = step.sample.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(step.predict(sample).square().sum(), sample)
    along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3)).to(gradient)
    with torch.no_grad():
        up, down = (step.predict(step.sample + sign * reach * along).double().square().sum() for sign in (1, -1))
    slope = float((gradient.double() * along.double()).sum())
    assert sample.dtype == dtype and slope == pytest.approx(float((up - down) / (2 * reach)), rel=loose)


def pictures_of(result: Any) -> torch.Tensor:
    """Return a pipeline's pictures (n, channels, h, w), or clips (n, channels, frames, h, w), as it made them."""
    made = finished(result)
    if isinstance(made, np.ndarray):
        return torch.from_numpy(made).movedim(-1, 1)
    return made.movedim(2, 1) if made.ndim == 5 else made


@pytest.mark.parametrize("name", ENGINES)
@torch.no_grad()
def test_pictures_of_another_last_sample_are_the_pipelines(name):
    """Oracle: the pipeline's own picture, as a tensor, of a run whose last step is disturbed."""
    whole = once(name)
    other = whole.disturbed(-1, output_type="np" if name in AS_ARRAYS else "pt")
    last, expected = other.returned[whole.places[-1]][: len(whole.trace[0].sample)], pictures_of(other.result)
    pictures = whole.trace.decode(last)
    assert pictures.shape == expected.shape and float((pictures - expected).abs().max()) <= 1e-4
    assert float((whole.trace.decode(whole.trace[-1].prev_sample) - expected).abs().max()) > 1e-3
    again = whole.trace.decode(torch.cat([last, whole.trace[-1].prev_sample, last]))
    assert float((again[::2] - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", ["sd-rescale", "sd-controlnet", "z-image", "cosmos"])
@torch.no_grad()
def test_the_text_is_encoded_once_over_many_questions(name):
    whole, calls = recorded(name), []
    trace = whole.trace
    layer = list(whole.pipeline.text_encoder.modules())[-1]
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    try:
        run(whole.pipeline, whole.call)
        once_a_call = len(calls)
        calls.clear()
        for step in trace:
            step.predict(step.sample)
            step.predict(2 * step.sample)
        assert once_a_call > 0 and len(calls) == once_a_call
        with torch.enable_grad():
            trace[1].predict(trace[1].sample.clone().requires_grad_()).sum().backward()
        assert len(calls) == once_a_call
    finally:
        handle.remove()


def streams(generator: torch.Generator) -> list[Any]:
    return [torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[1].copy()]


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale", "sd-sag", "wan-2.2", "pixel-ddpm", "cosmos"])
def test_questions_move_no_random_stream(name):
    pipeline, call, generator = FAMILIES[name].build(), FAMILIES[name].call(), torch.Generator().manual_seed(SEED)
    trace = denoscope.load(pipeline).trace(**call, generator=generator)
    torch.manual_seed(7)
    before = streams(generator)
    for step in (trace[0], trace[1]):
        step.predict(2 * step.sample)
    sample = trace[1].sample.clone().requires_grad_()
    trace[1].predict(sample).sum().backward()
    trace.decode(trace[-1].prev_sample)
    trace[0].layout.as_maps(sample)
    assert all(np.array_equal(a, b) for a, b in zip(before[:2], streams(generator)[:2], strict=True))
    assert before[2] == streams(generator)[2] and np.array_equal(before[3], streams(generator)[3])


@pytest.mark.parametrize("name", ["ltx-2", "ltx-2-image-to-video"])
@torch.no_grad()
def test_a_clip_is_asked_beside_its_sound(name):
    """Oracle: a disturbed run. The sound has steps of its own, of a copy of the scheduler that the pipeline makes."""
    whole = recorded(name)
    assert whole.places == (0, 2, 4, 6) and whole.trace[1].engine == BATCHES
    other = whole.disturbed(0)
    assert relative(whole.trace[1].predict(other.samples[2]), other.outputs[2]) <= allowed(BATCHES)


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale"])
@torch.no_grad()
def test_a_pipeline_that_cannot_be_asked_again(name):
    """Its denoiser alone answers where its outputs are mixed by fixed factors, and is refused where they may not be."""
    pipeline, call = FAMILIES[name].build(), FAMILIES[name].call()
    pipeline.set_progress_bar_config(disable=True)
    other = run(pipeline, call, 0)
    trace = denoscope.load(pipeline).trace(**call, seed=SEED)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("only once")

    pipeline.check_inputs = fail
    if name == "sd-text":
        assert relative(trace[1].predict(other.samples[1]), other.outputs[1]) <= allowed(trace[1].engine)
        return
    message = refusal(lambda: trace[1].predict(other.samples[1]), kind=ReplayError)
    assert "may be mixed by the sample's numbers" in message and "only once" in message


BATCH = {"prompt": ["a large red circle", "a small blue square"], "num_images_per_prompt": 2}


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale", "sd-pag", "flux-true-cfg"])
@torch.no_grad()
def test_two_pictures_of_each_of_two_prompts(name):
    """Oracle: a disturbed run of the whole batch; each picture is asked alone, and all of them together."""
    negative = FAMILIES[name].call().get("negative_prompt")
    whole = recorded(name, **BATCH, **({"negative_prompt": [negative] * 2} if negative else {}))
    other, trace = whole.disturbed(0), whole.trace
    assert trace.pictures == len(trace.images) == 4
    sample, output = other.samples[1], other.outputs[1]
    assert relative(trace[1].predict(sample), output) <= allowed(trace[1].engine)
    for index in range(4):
        step = trace.picture(index)[1]
        assert relative(step.predict(sample[index : index + 1]), output[index : index + 1]) <= 1e-4
        two = step.predict(torch.cat([step.sample, sample[index : index + 1]]))
        assert relative(two[:1], step.model_output) <= 1e-4 and relative(two[1:], output[index : index + 1]) <= 1e-4
    pictures = trace.decode(other.returned[-1])
    expected = pictures_of(whole.disturbed(0, output_type="pt").result)
    assert float((pictures - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["sd-text", "sd-rescale", "dit"])
@torch.no_grad()
def test_a_generator_for_each_picture(name):
    """Oracle: a disturbed run with the same generators. Their own states stay where the recorded call left them."""
    call = dict(FAMILIES[name].call())
    call |= {"class_labels": [1, 2]} if name == "dit" else {"num_images_per_prompt": 2}
    pipeline = FAMILIES[name].build()
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    other = run(pipeline, call, 0, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    trace = denoscope.load(pipeline).trace(**call, generator=generators)
    states = [generator.get_state() for generator in generators]
    assert trace.pictures == 2
    sample, output = other.samples[1][:2], other.outputs[1][:2]
    assert relative(trace[1].predict(sample), output) <= allowed(trace[1].engine)
    assert relative(trace.picture(1)[1].predict(sample[1:]), output[1:]) <= 1e-4
    assert all(torch.equal(a, b.get_state()) for a, b in zip(states, generators, strict=True))


def test_what_a_pipeline_changes_in_place_is_the_same_at_every_question():
    """SDXL's adapter pipeline doubles the entries of the list that its adapter gave: they grew at each question."""
    whole = once("sdxl-t2i-adapter")
    run, sizes = whole.trace[0].run, []
    for _ in range(3):
        told = read_run(run, 1, 0, "conditional")
        residuals = told.tree[1]["down_intrablock_additional_residuals"]
        sizes.append([len(residual) for residual in residuals])
    assert sizes == [sizes[0]] * 3 and set(sizes[0]) == {2}


def test_a_picture_that_is_changed_after_the_call_is_asked_about_as_it_was():
    pipeline, call = FAMILIES["sd-img2img"].build(), dict(FAMILIES["sd-img2img"].call())
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    trace = denoscope.load(pipeline).trace(**call | {"image": image}, seed=SEED)
    recorded_call = trace[0].run.resumption.call
    before = image.clone()
    image.zero_()
    recorded_call.arguments()[1]["image"].zero_()
    assert torch.equal(recorded_call.arguments()[1]["image"], before)


def test_what_cannot_be_copied_is_handed_on_with_tensors_of_its_own():
    lock, tensor = threading.Lock(), torch.ones(2)
    again = copied({"states": [tensor], "lock": lock})
    assert again["lock"] is lock and torch.equal(again["states"][0], tensor) and again["states"][0] is not tensor
    output = BaseModelOutput(last_hidden_state=tensor)
    twice = copied(output)
    assert type(twice) is BaseModelOutput and twice.last_hidden_state is not tensor
