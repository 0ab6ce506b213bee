"""A call as the pipeline's users write it: pictures by position, several generators, and whose failure a failure is."""

import functools

import diffusers
import numpy as np
import pytest
import torch
from from_pictures import controlnet, img2img, inpaint, left_half, photograph, unclip_img2img
from small import PIPELINES, SCHEDULERS, refusal, sdxl, wan

import denoscope
from denoscope.errors import InputError, RecordingError
from denoscope.recording import recorder
from denoscope.recording.arguments import Call, takes
from denoscope.recording.prompts import prompt_of

TEXT = "a red circle"
SHORT = dict(num_inference_steps=4, output_type="latent")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(pipeline, *args, **call) -> denoscope.Trace:
    """The trace of a call, once its result is that of the pipeline alone, bit for bit."""
    plain = pipeline(*args, generator=seeded(), **{**SHORT, **call}).images
    trace = denoscope.load(pipeline).trace(*args, seed=0, **{**SHORT, **call})
    assert torch.equal(torch.as_tensor(np.asarray(trace.images)), torch.as_tensor(np.asarray(plain)))
    return trace


# As the pipeline's users call it.


def test_pictures_by_position_and_by_name():
    """Identity: both ways are the pipeline's own picture."""
    picture, mask = photograph(), left_half()
    assert len(same(img2img(), TEXT, picture, 0.5)) == 2
    same(img2img(), prompt=TEXT, image=picture, strength=1.0)
    same(inpaint(), TEXT, picture, mask, height=32, width=32)
    same(controlnet(), TEXT, picture)
    both = diffusers.StableDiffusionControlNetImg2ImgPipeline
    same(controlnet(both), TEXT, picture, photograph(seed=1), strength=0.5)


@pytest.mark.parametrize("text", [(), (None,), ("",), (TEXT,)])
def test_a_picture_before_the_text_or_without_one(text):
    trace = same(unclip_img2img(), photograph(), *text)
    assert prompt_of(trace.call) == (text[0] if text else None) and trace.call["image"] is not None


def test_the_recorded_call_makes_the_same_again():
    """The names that positions have are in it, and the seed."""
    model = denoscope.load(img2img())
    trace = model.trace(TEXT, photograph(), 0.5, 6, seed=3)
    call = dict(trace.call)
    assert call["args"] == (TEXT,) and (call["strength"], call["num_inference_steps"]) == (0.5, 6)
    again = model.trace(*call.pop("args"), **call)
    assert np.array_equal(np.asarray(again.image), np.asarray(trace.image)) and len(trace) == 3


def test_one_generator_a_picture(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    both = model.trace([TEXT, TEXT], generator=[seeded(3), seeded(4)], **SHORT)
    for place, seed in enumerate((3, 4)):
        alone = model.trace(TEXT, seed=seed, **SHORT)
        torch.testing.assert_close(both.images[place], alone.images[0], rtol=1e-4, atol=1e-4)


def test_latents_and_a_callback(stable_diffusion):
    latents, told = torch.randn(1, 4, 8, 8, generator=seeded()), []

    def on_step_end(pipeline, index, timestep, tensors):
        told.append(index)
        return {"latents": tensors["latents"] * 0.9}

    trace = same(stable_diffusion, TEXT, latents=latents, callback_on_step_end=on_step_end)
    assert torch.equal(trace[0].sample, latents) and told == [0, 1, 2, 3] * 2


def test_a_part_of_a_run():
    """SDXL's base and refiner share one run; the ends of both are fractions of it."""
    base = sdxl()
    refiner = diffusers.AutoPipelineForImage2Image.from_pipe(base)
    size = dict(height=32, width=32, num_inference_steps=5, negative_prompt="")
    first = same(base, TEXT, denoising_end=0.6, **size)
    assert len(first) == 3
    call = dict(image=first.images, denoising_start=0.6, num_inference_steps=5, negative_prompt="")
    second = same(refiner, TEXT, **call)
    assert len(second) == 2 and second[0].timestep < first[-1].timestep


def test_whole_numbers_of_numpy(stable_diffusion):
    Call(stable_diffusion, (TEXT,), {"num_inference_steps": np.int64(3), "height": np.int32(64)})
    assert "num_inference_steps is True" in refusal(Call, stable_diffusion, (TEXT,), {"num_inference_steps": True})


def test_texts_in_lists_and_mappings(stable_diffusion):
    for prompt in ("", [""], ("a", "b"), {0: "a", 8: "b"}):
        Call(stable_diffusion, (), {"prompt": prompt})
    for prompt in ([], {}, 3, [3], {0: None}):
        assert "The prompt is" in refusal(Call, stable_diffusion, (), {"prompt": prompt})


def test_steps_are_limited_only_by_a_training_grid():
    """Ground truth: flow matching runs more steps than it was trained on, as the pipeline does."""
    pipeline = PIPELINES["ddpm"]()
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=2)
    Call(pipeline, (), {"num_inference_steps": 5})
    pipeline.scheduler = SCHEDULERS["ddim"]()
    assert "trained on, 1000" in refusal(Call, pipeline, (), {"num_inference_steps": 1001})


# Refused before anything runs.


PICTURE = photograph()
WRONG = {
    "no picture": (PIPELINES["stable-diffusion"], (TEXT,), dict(image=PICTURE), 'no option "image"'),
    "no strength": (PIPELINES["stable-diffusion"], (TEXT,), dict(strength=0.5), 'no option "strength"'),
    "picture first": (PIPELINES["stable-diffusion"], (PICTURE, TEXT), {}, "takes prompt, height"),
    "twice": (img2img, (TEXT, PICTURE), dict(image=PICTURE), "image was given twice"),
    "too many": (PIPELINES["ddpm"], (1, None, 2, "pil", True, 3), {}, "takes 5: batch_size, generator"),
    "seed and generator": (PIPELINES["ddpm"], (1, seeded()), dict(seed=1), "give one of them"),
    "seed and generators": (img2img, (TEXT, PICTURE), dict(seed=1, generator=[seeded()]), "give one of them"),
    "slip": (inpaint, (TEXT, PICTURE), dict(mask_imag=PICTURE), 'Did you mean "mask_image"'),
}


@pytest.mark.parametrize("build, args, call, said", WRONG.values(), ids=WRONG)
def test_arguments_that_cannot_be(build, args, call, said, monkeypatch):
    pipeline = build()
    monkeypatch.setattr(pipeline.unet, "forward", lambda *_, **__: pytest.fail("the denoiser ran"))
    assert said in refusal(denoscope.load(pipeline).trace, *args, **call)


def test_a_wrapper_takes_what_it_hands_on(stable_diffusion):
    """The `**kwargs` of a user's class reach the pipeline; those of diffusers' own reach nothing."""
    kind = diffusers.StableDiffusionImg2ImgPipeline

    class Mine(kind):
        def __call__(self, prompt, **kwargs):
            return super().__call__(prompt, **kwargs)

    parts = {**stable_diffusion.components, "requires_safety_checker": False}
    assert takes(Mine(**parts), "image") and not takes(stable_diffusion, "image") and takes(kind(**parts), "image")
    same(Mine(**parts), TEXT, image=PICTURE)


# Words that a pipeline has too.


class Shifting(diffusers.DDPMPipeline):
    """A pipeline with arguments of its own that `trace` has too."""

    def __call__(self, batch_size=1, generator=None, num_inference_steps=3, shift=1.0, seed=None, **kwargs):
        result = super().__call__(batch_size, generator, num_inference_steps, **kwargs)
        result.told = (shift, seed)
        return result


OWN = [("shift", 3.0, "early(30, 3.0)"), ("seed", 5, "manual_seed(5)")]


@pytest.mark.parametrize("word, value, other", OWN)
def test_a_word_that_the_pipeline_has_too_is_refused_and_the_ways_that_are_named_work(word, value, other):
    parts = PIPELINES["ddpm"]().components
    pipe = Shifting(**parts)
    message = refusal(denoscope.load(pipe).trace, **{word: value})
    assert f"{word}={value!r} was given" in message and other in message
    (advised,) = [part for part in message.split(": ") if part.startswith("__call__ = ")]
    kind = advised.split(", and")[0].removeprefix("__call__ = ")
    own = type("Own", (Shifting,), {"__call__": eval(kind, {"functools": functools, "Shifting": Shifting})})
    trace = denoscope.load(own(**parts)).trace(generator=seeded(5))
    assert trace.result.told == ((value, None) if word == "shift" else (1.0, value))
    assert np.array_equal(np.asarray(trace.image), np.asarray(pipe(generator=seeded(5)).images[0]))


def test_words_that_no_one_shares_are_left_alone():
    model = denoscope.load(Shifting(**PIPELINES["ddpm"]().components))
    assert model.trace(1, seeded(1), schedule="uniform").result.told == (1.0, None)


# Whose failure it is.


MISTAKES = [KeyError, ValueError, RuntimeError, OverflowError, AttributeError]


@pytest.mark.parametrize("error", MISTAKES)
def test_a_failure_of_the_recording_is_not_the_pipelines(stable_diffusion, monkeypatch, error):
    def mistaken(*args, **kwargs):
        raise error("strange")

    monkeypatch.setattr(recorder, "refuse_non_finite", mistaken)
    message = refusal(denoscope.load(stable_diffusion).trace, TEXT, kind=RecordingError, **SHORT)
    assert message.startswith("Denoscope failed while it recorded StableDiffusionPipeline, at recording/recorder.py")
    assert error.__name__ in message and "strange" in message and "refused the call" not in message


def test_what_denoscope_asks_of_torch_is_its_own_failure(stable_diffusion, monkeypatch):
    """The innermost frame is torch's; the call is Denoscope's."""
    monkeypatch.setattr(recorder, "refuse_non_finite", lambda *_: torch.nn.functional.pad(torch.zeros(1), (1, 2, 3)))
    message = refusal(denoscope.load(stable_diffusion).trace, TEXT, kind=RecordingError, **SHORT)
    assert "Denoscope failed" in message


@pytest.mark.parametrize("swapped", [None, "euler"])
@pytest.mark.parametrize("error", MISTAKES)
def test_a_failure_of_the_scheduler_inside_the_listener_is_the_pipelines(stable_diffusion, monkeypatch, error, swapped):
    def step(self, *args, **kwargs):
        raise error("strange")

    kind = diffusers.EulerDiscreteScheduler if swapped else type(stable_diffusion.scheduler)
    monkeypatch.setattr(kind, "step", step)
    message = refusal(denoscope.load(stable_diffusion).trace, TEXT, scheduler=swapped, **SHORT)
    assert message.startswith("StableDiffusionPipeline refused the call") and "strange" in message


LISTENERS = {
    "closure": "def listener(step): return lambda *args, **kwargs: (before(), step(*args, **kwargs))[1]",
    "partial": """
def listener(step):
    def stepped(original, *args, **kwargs):
        before()
        return original(*args, **kwargs)
    return functools.partial(stepped, step)""",
    "attribute": """
class Listener:
    def __init__(self, step): self.step = step
    def __call__(self, *args, **kwargs):
        before()
        return self.step(*args, **kwargs)
listener = Listener""",
}


@pytest.mark.parametrize("source", LISTENERS.values(), ids=LISTENERS)
@pytest.mark.parametrize("mistaken", [False, True])
def test_listeners_of_any_form_hand_on_a_call(stable_diffusion, monkeypatch, source, mistaken):
    """Code that counts as Denoscope's own by its file listens to a scheduler whose step fails."""

    def fail(*args, **kwargs):
        raise KeyError("strange")

    def before():
        if mistaken:
            raise KeyError("of the listener")

    names = {"functools": functools, "before": before, "__name__": "denoscope.listener"}
    exec(compile(source, recorder.__file__, "exec"), names)
    scheduler = stable_diffusion.scheduler
    monkeypatch.setattr(type(scheduler), "step", fail)
    monkeypatch.setattr(scheduler, "step", names["listener"](scheduler.step), raising=False)
    call = Call(stable_diffusion, (TEXT,), SHORT)
    kind = RecordingError if mistaken else InputError
    message = refusal(call.run, SHORT, [], kind=kind)
    assert message.startswith("Denoscope failed" if mistaken else "StableDiffusionPipeline refused")


def test_an_exception_of_ones_own_callback_comes_as_it_is(stable_diffusion):
    class Enough(Exception):
        pass

    def on_step_end(*args):
        raise Enough

    with pytest.raises(Enough):
        denoscope.load(stable_diffusion).trace(TEXT, callback_on_step_end=on_step_end, **SHORT)


REASONS = {
    "sizes": (wan, (TEXT,), dict(height=40, width=32, num_frames=5), "sizes must be multiples of 16 pixels", True),
    "another reason": (img2img, (TEXT, PICTURE), dict(negative_prompt=["a", "b"]), "should be the same type", False),
    "no step left": (
        img2img,
        (TEXT, PICTURE),
        dict(strength=0.1, output_type="pil"),
        "A strength of 0.1 leaves 0.4 of",
        False,
    ),
    "no picture": (img2img, (TEXT,), dict(strength=0.1), "Input is in incorrect format", False),
    "no file": (img2img, (TEXT, "no-such.png"), {}, "refused the call", False),
    "no prompt": (img2img, (), dict(image=PICTURE), "No prompt was given", False),
}


@pytest.mark.parametrize("build, args, call, said, of_sizes", REASONS.values(), ids=REASONS)
def test_sizes_are_the_reason_where_they_are(build, args, call, said, of_sizes):
    message = refusal(denoscope.load(build()).trace, *args, seed=0, kind=InputError, **{**SHORT, **call})
    assert (
        said in message and ("multiples of" in message) == of_sizes and (said[:5] == "A str") == ("leaves" in message)
    )
