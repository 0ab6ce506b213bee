"""What people do to their pipelines: answers as without it, or one sentence; `benchmarks/habits.py` has the table."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from families import oracle
from families.every import FAMILIES
from habits import HABITS, quiet, sequential, state

import denoscope
from denoscope import DFCam, DFRise, Words
from denoscope.errors import CaptureError
from denoscope.recording.components import denoiser_of, working_device
from denoscope.recording.hooks.layers import randomised
from denoscope.recording.hooks.surroundings import eagerly, is_offloaded, own_network, weights_kept

CLOSE = 2e-5
CHANGED = ("weights of 8 bits", "training, checkpointing")
OFFLOADED = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "group offload, leaves, disk")


def pipeline_with(name: str, undo: ExitStack, family: str = "sd-text", as_plain: bool = False) -> Any:
    """Return a small pipeline with a habit, or with what gives the same numbers in another way."""
    habit = HABITS[name]
    missing = habit.missing()
    if missing is not None and not as_plain:
        pytest.skip(f"{missing} is not installed")
    pipe = FAMILIES[family].build()
    pipe.set_progress_bar_config(disable=True)
    apply = habit.reference if as_plain else habit.apply
    assert apply is not None
    with quiet():
        return apply(pipe, undo)


def recorded(pipe: Any, family: str = "sd-text") -> denoscope.Trace:
    torch.manual_seed(oracle.SEED)
    generator = torch.Generator().manual_seed(oracle.SEED)
    return denoscope.load(pipe).trace(generator=generator, **FAMILIES[family].call())


def gradient(trace: denoscope.Trace) -> torch.Tensor:
    """Return the gradient of a picture's sum by the sample, through the denoiser and the decoder."""
    sample = trace[1].sample.clone().requires_grad_()
    (value,) = torch.autograd.grad(trace[1].clean(sample).sum(), sample)
    return value


def answers(trace: denoscope.Trace) -> dict[str, Any]:
    """Return answers of each kind: a prediction, a gradient, and layers listened to."""
    other = trace[1].sample.flip(-1)
    with torch.no_grad():
        found = {"predict": trace[1].predict(other), "decode": trace.decode(other)}
    found["gradient"] = gradient(trace)
    found["layers"] = torch.from_numpy(DFCam.paper()(trace, [1]).saliency.values)
    return found


@functools.cache
def plain_answers(name: str) -> dict[str, Any]:
    with ExitStack() as undo:
        return answers(recorded(pipeline_with(name, undo, as_plain=True)))


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("name", (*CHANGED, *OFFLOADED))
def test_the_answers_are_those_of_the_plain_pipeline(name, undo):
    pipe = pipeline_with(name, undo)
    own = oracle.run(pipe, FAMILIES["sd-text"].call()).result
    before = state(pipe)
    trace = recorded(pipe)
    expected = plain_answers(name if name in CHANGED[:1] else "nothing")
    for kind, values in answers(trace).items():
        assert oracle.relative(values, expected[kind]) < CLOSE, kind
    assert state(pipe) == before
    again = oracle.run(pipe, FAMILIES["sd-text"].call()).result
    for result in (trace.result, again):
        np.testing.assert_array_equal(oracle.numbers(oracle.finished(result)), oracle.numbers(oracle.finished(own)))


def test_a_run_in_inference_mode_has_gradients():
    pipe = FAMILIES["sd-text"].build()
    with torch.inference_mode():
        trace = recorded(pipe)
    assert oracle.relative(gradient(trace), plain_answers("nothing")["gradient"]) < CLOSE


def test_a_graph_holds_the_weights_it_was_computed_with():
    """What is done to a weight's data behind the call, as offloading does, does not change the gradient."""
    layer: Any = torch.nn.Conv1d(3, 3, 1).requires_grad_(False)
    layer._hf_hook = object()
    sample = torch.ones(1, 3, 1, requires_grad=True)
    expected = layer.weight[:, :, 0].sum(dim=0).clone()
    for kept in (True, False):
        with weights_kept(*([layer] if kept else [])):
            y = layer(sample).sum()
        weights, layer.weight.data = layer.weight.data, torch.full((3, 3, 1), 7.0)
        (found,) = torch.autograd.grad(y, sample)
        layer.weight.data = weights
        assert torch.allclose(found[0, :, 0], expected) is kept


def test_the_working_device_is_the_pipelines_own(undo):
    pytest.importorskip("accelerate", reason="it brings the hooks of offloading")
    pipe = FAMILIES["sd-text"].build()
    sequential(pipe, undo)
    assert next(pipe.unet.parameters()).is_meta and working_device(pipe) == torch.device("cpu")


@pytest.mark.parametrize("name, said", [("group offload, leaves", "offloaded"), ("weights of 8 bits", "quantised")])
def test_weights_that_cannot_be_written_are_not_randomised(name, said, undo):
    pipe = pipeline_with(name, undo)
    layers = [path for path, module in pipe.unet.named_modules() if "to_q" in path]
    with pytest.raises(CaptureError, match=said), randomised(pipe.unet, layers[:1]):
        pass


def test_offloading_is_seen(undo):
    assert not is_offloaded(FAMILIES["sd-text"].build().unet)
    assert is_offloaded(pipeline_with("group offload, leaves", undo).unet)
    assert not is_offloaded(pipeline_with("enable_cache, first block", undo, "flux").transformer)


def test_hooks_inside_a_compiled_network_run():
    """Hooks that are set behind a compilation are passed over by its code; `eagerly` runs them, and keeps the code."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    outside: Any = torch.compile(network, backend="eager")
    heard: list[str] = []
    with quiet(), torch.no_grad():
        outside(torch.ones(1, 2))
        network[0].register_forward_hook(lambda *_: heard.append("0"))
        outside(torch.ones(1, 2))
        assert not heard
        with eagerly():
            outside(torch.ones(1, 2))
    assert heard == ["0"] and own_network(outside) is network and own_network(network) is network
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_denoiser_is_listened_to(undo):
    """Hooks that are set behind a compilation do not run; the maps are those of the plain pipeline all the same."""
    pipe = pipeline_with("torch.compile, eager", undo)
    with quiet():
        oracle.run(pipe, FAMILIES["sd-text"].call())  # compiled now
        before = state(pipe)
        trace = recorded(pipe)
        found = [method(trace, [1]).saliency for method in (DFCam.paper(), Words())]
        layers = DFCam.paper()(trace, [1]).layer_saliency.layer.values
    plain = recorded(FAMILIES["sd-text"].build())
    for mine, method in zip(found, (DFCam.paper(), Words()), strict=True):
        assert oracle.relative(mine.values, method(plain, [1]).saliency.values) < CLOSE
    assert all(layer in denoscope.load(pipe).layers() for layer in layers)
    assert denoiser_of(pipe) is pipe.unet._orig_mod and state(pipe) == before
    calls: list[int] = []
    pipe.unet._orig_mod.conv_in.register_forward_hook(lambda *_: calls.append(1))
    with eagerly(), torch.no_grad(), quiet():
        trace[1].predict(trace[1].sample)
    assert calls


def test_questions_about_a_run_under_autocast_are_asked_under_it():
    """The same call under autocast again is the oracle; the question stands outside of it."""
    family = FAMILIES["sd-text"]
    pipe = family.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = recorded(pipe)
        seen = oracle.run(pipe, family.call(), 0)
    with torch.no_grad():
        found = trace[1].predict(seen.samples[1])
    assert oracle.relative(found.float(), seen.outputs[1].float()) < 0.01  # bfloat16, mixed in float32
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # asked inside of it: the same map
        inside = DFRise.contrast(4)(trace, [1]).saliency
    np.testing.assert_array_equal(inside.values, DFRise.contrast(4)(trace, [1]).saliency.values)


@pytest.mark.parametrize("kind", ("first block", "pyramid"))
def test_a_cache_is_as_it_was_after_questions(kind, undo):
    """A question breaks a call off in the middle of the cache's steps; the next picture is the same."""
    pipe = pipeline_with(f"enable_cache, {kind}", undo, "flux")
    own = oracle.run(pipe, FAMILIES["flux"].call()).result
    trace = recorded(pipe, "flux")
    seen = oracle.run(pipe, FAMILIES["flux"].call(), 0)
    with torch.no_grad():
        assert oracle.relative(trace[1].predict(seen.samples[1]), seen.outputs[1]) < CLOSE
    again = oracle.run(pipe, FAMILIES["flux"].call()).result
    np.testing.assert_array_equal(oracle.numbers(oracle.finished(again)), oracle.numbers(oracle.finished(own)))


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_a_compiled_denoiser_is_passed_as_many_samples_as_before(undo, how):
    """The last portion is filled up, so that nothing is compiled for its number; the map is the same."""
    pipe = pipeline_with("nothing", undo)
    sizes: list[int] = []

    def backend(graph, inputs):
        def run(*args):
            tensors = [value for value in args if isinstance(value, torch.Tensor) and value.ndim == 4]
            sizes.extend(len(tensor) for tensor in tensors[:1] if tensor.shape[-1] == 8)
            return graph(*args)

        return run

    trace = denoscope.load(pipe).trace("a red circle", seed=1, num_inference_steps=2)
    method = denoscope.DFRise(100, batch_size=24)
    truth = method(trace, [1])
    if how == "whole":
        pipe.unet.compile(backend=backend, dynamic=False)
    else:
        for block in (*pipe.unet.down_blocks, *pipe.unet.up_blocks):
            block.compile(backend=backend, dynamic=False)
    try:
        maps = method(trace, [1])
    finally:
        for module in pipe.unet.modules():
            module._compiled_call_impl = None
        torch.compiler.reset()
    np.testing.assert_allclose(maps.saliency.values, truth.saliency.values, atol=1e-5)
    assert set(sizes) <= {1, 2, 24, 48}, "one sample to check the engine, and portions of 24, with guidance or without"


@pytest.mark.parametrize("name", ["nothing", *OFFLOADED])
def test_weights_have_gradients_again_after_a_question_about_gradients(name, undo):
    """Offloading puts other tensors in the weights' places at each call."""
    pipe = pipeline_with(name, undo)
    trace, before = recorded(pipe), state(pipe)
    torch.manual_seed(1)
    layers = torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    network, values = torch.nn.Sequential(*layers).eval(), {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    classifier = denoscope.load_classifier(network, ["one", "two"], size=(16, 16), **values)
    denoscope.IntegratedGradients(denoscope.ClassScore(classifier, "one"), n_steps=2)(trace, [1])
    assert state(pipe) == before and any(weight.requires_grad for weight in pipe.unet.parameters())
