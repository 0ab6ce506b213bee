"""What cannot be loaded or asked of a model is said in one paragraph; what can be is left as it was."""

import json
import shutil
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from small import HUB_SAYS, PIPELINES, SCHEDULERS, failing_hub, refusal

import denoscope
from denoscope.errors import InputError, ModelError, RecordingError, ScheduleError
from denoscope.recording import loading, memory
from denoscope.recording.arguments import Call
from denoscope.recording.hooks.modes import gradients
from denoscope.recording.models import TruncatedPromptWarning
from denoscope.recording.prompts import TextReader
from denoscope.worlds.shapes.scenes import WORDS


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Path:
    """A folder with a small unconditional pipeline."""
    folder = tmp_path_factory.mktemp("models") / "pixels"
    PIPELINES["ddpm"]().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(pixels, tmp_path) -> Path:
    """The same in a folder to break."""
    return Path(shutil.copytree(pixels, tmp_path / "pipeline"))


@pytest.fixture
def model(stable_diffusion) -> denoscope.Model:
    return denoscope.load(stable_diffusion)


@pytest.mark.parametrize(
    "given, said",
    [
        (3, "3 (int) is not a model"),
        (None, "None (NoneType) is not a model"),
        ("", "cannot be empty"),
        ("  ", "cannot be empty"),
        ("shape", 'Did you mean "shapes"?'),
        ("/no/such/folder", "no folder"),
        ("owner/name/more", "written owner/name"),
        (__file__, "it is a file"),
        (Path(__file__).parent, "without model_index.json"),
    ],
)
def test_what_is_no_model(given, said):
    assert said in refusal(lambda: denoscope.load(given), kind=ModelError)


def test_a_slip_is_not_looked_up_in_the_network(monkeypatch):
    monkeypatch.setattr("denoscope.recording.loading._hub_answers", lambda: pytest.fail("asked the network"))
    for name in ("shape", "./shapes", "~/nothing", "a/b/c"):
        refusal(lambda name=name: denoscope.load(name), kind=ModelError)


def test_a_hub_id_without_a_network_is_refused_with_the_reason():
    """The tests run with HF_HUB_OFFLINE."""
    message = refusal(lambda: denoscope.load("someone/some-model"), kind=ModelError)
    assert '"someone/some-model"' in message and "cannot be reached" in message


def test_a_dead_line_is_given_up(monkeypatch):
    """A server that takes connections and never answers."""
    import socket

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert loading._hub_answers(seconds=0.2) is False
        server.settimeout(1)
        server.accept()[0].close()  # it was asked


@pytest.mark.parametrize("name, said", HUB_SAYS)
def test_what_the_hub_says_is_passed_on(monkeypatch, name, said):
    import diffusers

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", failing_hub(name))
    assert said in refusal(lambda: denoscope.load("someone/some-model"), kind=ModelError)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{ nope", "Expecting property name"),
        ("[]", "_class_name"),
        ("3", "not iterable"),
        ("{}", "_class_name"),
        ('{"_class_name": "NoSuchPipeline"}', "NoSuchPipeline"),
    ],
)
def test_a_broken_index(copied, text, said):
    (copied / "model_index.json").write_text(text)
    assert said in refusal(lambda: denoscope.load(copied), kind=ModelError)


def test_a_folder_for_another_library_or_from_elsewhere(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "unet": ["my_code", "Unet"]}))
    assert "could not be loaded" in refusal(lambda: denoscope.load(copied), kind=ModelError)


def test_missing_and_damaged_weights(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"not a tensor in sight")
    assert "could not be loaded" in refusal(lambda: denoscope.load(copied), kind=ModelError)
    weights.unlink()
    assert "no file named" in refusal(lambda: denoscope.load(copied), kind=ModelError)


def test_pickles_are_refused_before_they_are_read(copied):
    """The pickle would leave a mark when it is read."""
    import pickle

    class Mark:
        def __reduce__(self):
            return (Path.touch, (copied / "was-read",))

    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Mark()))
    message = refusal(lambda: denoscope.load(copied), kind=ModelError)
    assert "pickles" in message and "diffusion_pytorch_model.bin" in message and "safe_serialization" in message
    assert not (copied / "was-read").exists()


@pytest.mark.parametrize("option", [{"use_safetensors": False}, {"trust_remote_code": True}, {"custom_pipeline": "x"}])
def test_pickles_and_foreign_code_cannot_be_asked_for(pixels, option):
    assert next(iter(option)) in refusal(lambda: denoscope.load(pixels, **option), kind=ModelError)


def test_dtype_and_device(pixels):
    for given in (torch.float64, "bfloat16", torch.float16):
        expected = getattr(torch, given) if isinstance(given, str) else given
        loaded = denoscope.load(pixels, dtype=given, device="cpu")
        assert {weights.dtype for weights in loaded.denoiser.parameters()} == {expected}
    assert 'Did you mean "float16"' in refusal(lambda: denoscope.load(pixels, dtype="flat16"), kind=ModelError)
    assert "int8" in refusal(lambda: denoscope.load(pixels, dtype=torch.int8), kind=ModelError)
    for device in ("cpuu", "meta", "cuda:99", 3.5):
        assert "Allowed: cpu" in refusal(lambda device=device: denoscope.load(pixels, device=device), kind=ModelError)


def test_a_loaded_pipeline_is_left_as_it_is(stable_diffusion):
    assert "pipe.to" in refusal(lambda: denoscope.load(stable_diffusion, dtype=torch.float16), kind=ModelError)
    assert denoscope.load(stable_diffusion).pipeline is stable_diffusion


@pytest.mark.parametrize(
    "args, kwargs, said",
    [
        ((), {}, "No prompt was given"),
        (([],), {}, "The prompt is []"),
        ((3,), {}, "The prompt is 3"),
        (("a circle",), dict(num_inference_step=3), 'Did you mean "num_inference_steps"'),
        (("a circle",), dict(num_inference_steps=0), "num_inference_steps is 0"),
        (("a circle",), dict(num_inference_steps=-1), "num_inference_steps is -1"),
        (("a circle",), dict(num_inference_steps="3"), "num_inference_steps is '3'"),
        (("a circle",), dict(num_inference_steps=1001), "time steps it was trained on, 1000"),
        (("a circle",), dict(height=60), "height 60"),
        (("a circle",), dict(width=0), "width 0"),
        (("a circle",), dict(width=-8), "width -8"),
        (("a circle",), dict(height="64"), "height '64'"),
        (("a circle",), dict(guidance_scale=float("nan")), "guidance_scale is nan"),
        (("a circle",), dict(seed=-1), "The seed is -1"),
        (("a circle",), dict(seed=2**64), "from 0 to 18446744073709551615"),
        (("a circle",), dict(seed="x"), "The seed is 'x'"),
        (("a circle",), dict(seed=1, generator=torch.Generator()), "give one of them"),
        (("a circle",), dict(schedule="erly"), 'Did you mean "early"'),
        (("a circle",), dict(negative_prompt=["a", "b"]), "refused the call"),
    ],
)
def test_calls_that_cannot_be_made(model, args, kwargs, said):
    assert said in refusal(lambda: model.trace(*args, **kwargs))
    assert not model.denoiser._forward_hooks and "step" not in vars(model.pipeline.scheduler)


def test_a_model_without_text(pixels):
    model = denoscope.load(pixels)
    for call in (lambda: model.trace("a circle"), lambda: model.trace(prompt="a circle")):
        assert "without text" in refusal(call)
    assert "takes no prompt" in refusal(lambda: model.tokens("a circle"))
    assert len(model.trace(seed=0, num_inference_steps=2)) == 2


def test_a_scheduler_that_cannot_take_the_steps(model):
    model.pipeline.scheduler = SCHEDULERS["ddim"]()
    call = lambda: model.trace("a circle", schedule="early", num_inference_steps=3)  # noqa: E731
    message = refusal(call, kind=ScheduleError)
    assert "DDIMScheduler" in message and "DPMSolverMultistepScheduler" in message


def test_too_little_memory_is_not_the_users_slip(model, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB")

    monkeypatch.setattr(model.pipeline.unet, "forward", fail)
    call = lambda: model.trace("a circle", num_inference_steps=2)  # noqa: E731
    assert "memory was not enough" in refusal(call, kind=RecordingError)


def test_a_long_prompt_warns_of_what_was_cut_and_goes_on(model):
    words = [f"word{i}" for i in range(60)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TruncatedPromptWarning)
        trace = model.trace(" ".join(words), seed=0, num_inference_steps=2)
    (said,) = [str(warning.message) for warning in caught]
    assert len(trace) == 2 and "this was cut off" in said and "\n" not in said and len(said) < 300
    assert Path(caught[0].filename) == Path(__file__)
    kept, cut = model.tokens(" ".join(words)), model.cut_off(" ".join(words))
    assert cut[:40] in said
    text = "".join(kept[1:-1]).replace("</w>", "")
    assert text + cut.replace(" ", "") == "".join(words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.cut_off("a red circle") == ""


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_steps_are_counted_as_the_run_will(model, scheduler, steps):
    """PNDM calls its denoiser once more than it was asked to."""
    model.pipeline.scheduler = SCHEDULERS[scheduler]()
    try:
        assert model.step_count(steps) == len(model.trace("a circle", seed=0, num_inference_steps=steps))
    finally:
        model.pipeline.scheduler = SCHEDULERS["dpm-solver++"]()
    assert model.step_count(4, [900, 500, 100]) == 3


def test_progress_is_told_of_each_step(model):
    told = []
    model.trace("a circle", seed=0, num_inference_steps=5, advance=told.append)
    assert told == [1] * 5


def test_attributors_refuse_steps_and_masks_that_cannot_be(model):
    trace = model.trace("a circle", seed=0, num_inference_steps=3)
    explain = denoscope.DFRise(num_masks=4)
    for steps, said in [
        ([99], "no step 99"),
        ([-1], "no step -1"),
        ([], "none is given"),
        ([1, 1], "twice"),
        (1, "whole numbers"),
        ("12", "whole numbers"),
        ([0.5], "whole numbers"),
    ]:
        assert said in refusal(lambda steps=steps: explain(trace, steps=steps))
    assert explain(trace, steps=np.array([2, 0])).step.values.tolist() == [2, 0]
    for masks in (0, -5, 3, "many", 4.0):
        assert "num_masks is" in refusal(lambda masks=masks: denoscope.DFRise(num_masks=masks))
    for until in (0, 1, 2, float("nan")):
        assert "until is" in refusal(lambda until=until: denoscope.DFRise(until=until))
    two = model.trace("a circle", seed=0, num_inference_steps=2, num_images_per_prompt=2)
    assert "trace.picture(0)" in refusal(lambda: explain(two))


def test_words_that_the_bundled_model_cannot_read():
    """Ground truth: the captions that it was trained on."""
    model = denoscope.load("shapes")
    assert set(model.vocabulary()) == set(WORDS)
    assert model.unknown_words("a photo of a cat on a sofa, a Photo") == ["photo", "cat", "sofa", "Photo"]
    assert model.unknown_words("A large, Red circle; red-striped!") == []
    assert model.unknown_words("a red-ish circle of 3") == ["red-ish", "3"]


def test_words_of_an_open_and_of_a_word_vocabulary(model):
    """Byte-level pieces spell everything; a vocabulary of words has an unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    folder = loading.bundled_folder("shapes") / "tokenizer"
    spelling = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    assert TextReader(spelling).vocabulary() is None and TextReader(spelling).unknown_words("a zebra ☃") == []
    words = Tokenizer(models.WordLevel({"<unk>": 0, "red": 1, "circle": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    reader = TextReader(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    assert reader.vocabulary() == ["circle", "red"] and reader.unknown_words("red cat circle") == ["cat"]


def test_a_model_without_text_has_no_words(pixels):
    model = denoscope.load(pixels)
    assert model.vocabulary() is None and model.unknown_words("a circle") == []


@pytest.mark.parametrize("prompt", ["", " \n", ["a circle", ""]])
def test_an_empty_prompt_is_the_pipelines_own(model, prompt):
    call = dict(num_inference_steps=2, output_type="latent")
    plain = model.pipeline(prompt, generator=torch.Generator().manual_seed(0), **call).images
    assert torch.equal(model.trace(prompt, seed=0, **call).images, plain)


@pytest.mark.parametrize("size", [dict(height=8 * 10**6), dict(width=8 * 10**7, height=64), dict(height=8 * 10**12)])
def test_pictures_of_absurd_size_are_refused_before_the_run(model, monkeypatch, size):
    """The text encoder would be the first to run."""
    monkeypatch.setattr(model.pipeline, "encode_prompt", lambda *args, **kwargs: pytest.fail("it ran"))
    call = {"width": 8 * 10**6, **size}
    message = refusal(lambda: model.trace("a circle", num_inference_steps=1000, **call))
    assert "GB" in message and "are free on cpu" in message


def test_the_least_memory_of_a_picture(model):
    """Oracle: bytes of the recorded tensors, which are part of it; a long run of small pictures is all recording."""
    trace = model.trace("a circle", seed=0, num_inference_steps=40, output_type="latent")
    recorded = sum(step.model_output.nbytes + step.prev_sample.nbytes for step in trace)
    least = memory.least_bytes(model.pipeline, 64, 64, 1, 40)
    assert recorded < least < recorded + 2**21
    assert memory.least_bytes(model.pipeline, 64, 64, 3, 40) > 3 * recorded
    assert 0 < memory.free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_part_without_numbers_is_named(part):
    pipeline = PIPELINES["stable-diffusion"]()
    getattr(pipeline, part).to("meta")
    message = refusal(lambda: denoscope.load(pipeline), kind=ModelError)
    assert f"pipe.{part} " in message and "meta" in message


def test_inference_mode(trace):
    """A run recorded under it has gradients; a pipeline loaded under it by hand is refused, by name it is not."""
    with torch.inference_mode():
        model = denoscope.load("shapes")
        recorded = denoscope.load(trace.model.pipeline).trace("a red circle", seed=1, num_inference_steps=4)
        pipeline = PIPELINES["stable-diffusion"]()
        with gradients():
            sample = recorded[1].sample.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(recorded[1].predict(sample).sum(), sample)
    assert not any(weights.is_inference() for weights in model.denoiser.parameters())
    assert torch.equal(recorded[-1].prev_sample, trace[-1].prev_sample)
    sample = trace[1].sample.clone().requires_grad_()
    assert torch.equal(gradient, torch.autograd.grad(trace[1].predict(sample).sum(), sample)[0])
    assert "inference_mode" in refusal(lambda: denoscope.load(pipeline), kind=ModelError)


@pytest.mark.parametrize("error", [OverflowError, AttributeError, KeyError, IndexError, ZeroDivisionError])
@pytest.mark.parametrize("late", [False, True])
def test_other_exceptions_of_the_pipeline_are_one_paragraph(model, monkeypatch, error, late):
    def fail(*args, **kwargs):
        raise error("strange")

    owner, name = (model.pipeline.vae, "decode") if late else (model.pipeline, "encode_prompt")
    monkeypatch.setattr(owner, name, fail)
    kind, said = (RecordingError, "failed after 2") if late else (InputError, "refused the call")
    message = refusal(lambda: model.trace("a circle", num_inference_steps=2), kind=kind)
    assert said in message and "strange" in message and "multiples of" not in message


def test_a_call_that_takes_anything_is_not_without_text(stable_diffusion):
    class Anything(type(stable_diffusion)):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    parts = {**stable_diffusion.components, "requires_safety_checker": False}
    model = denoscope.load(Anything(**parts))
    call = dict(seed=0, num_inference_steps=2, output_type="latent")
    expected = denoscope.load(stable_diffusion).trace("a circle", **call).images
    assert torch.equal(model.trace(prompt="a circle", **call).images, expected)
    assert torch.equal(model.trace("a circle", **call).images, expected)


def test_the_number_of_steps_is_bounded_by_a_training_grid_only(stable_diffusion):
    """Flow schedulers have none: some are released with num_train_timesteps=1."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    stable_diffusion.scheduler = scheduler
    Call(stable_diffusion, ("a circle",), {"num_inference_steps": 4})
    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    assert "trained on, 1000" in refusal(lambda: Call(stable_diffusion, ("a circle",), {"num_inference_steps": 1001}))
