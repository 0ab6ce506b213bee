"""Failures and interruptions leave a pipeline as it was: its next picture is the same, bit for bit."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pytest
import small
import torch
from families.every import FAMILIES
from families.oracle import finished, numbers, schedulers

import denoscope
from denoscope.errors import DenoscopeError, InputError, RecordingError


def half_sdxl() -> Any:
    """SDXL in half precision, whose autoencoder is brought to single precision for each picture."""
    pipeline = small.sdxl().to(torch.float16)
    assert pipeline.vae.config.force_upcast
    return pipeline


pytestmark = pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # the pipeline calls it

SIZED = {**small.TEXT, **small.SMALL, "num_inference_steps": 4}
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    name: (FAMILIES[name].build, dict(FAMILIES[name].call()))
    for name in ("sd-text", "sd-pag", "sd-controlnet", "wan", "flux")
} | {"sdxl in half precision": (half_sdxl, SIZED)}
FAULTS = [(part, KeyboardInterrupt) for part in ("denoiser", "scheduler", "autoencoder", "callback")]
FAULTS += [("denoiser", RuntimeError), ("autoencoder", RuntimeError)]


class Fault:
    """Raises an error in one part of a pipeline, from its `nth` call on, once it is armed."""

    def __init__(self) -> None:
        self.error: type[BaseException] | None = None
        self.part, self.nth, self.hits = "", 1, 0

    def arm(self, part: str, error: type[BaseException], nth: int = 1) -> None:
        self.part, self.error, self.nth, self.hits = part, error, nth, 0

    def passes(self, part: str) -> None:
        if self.error is not None and part == self.part:
            self.hits += 1
            if self.hits >= self.nth:
                raise self.error("struck")

    def callback(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.passes("callback")
        return {}


def faulty(pipeline: Any, fault: Fault, undo: ExitStack) -> None:
    """Let the fault see every call of the denoiser's and the decoder's last layers, and of the scheduler's step."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    for part, network in (("denoiser", denoiser), ("autoencoder", pipeline.vae.decoder)):
        layer = next(module for module in reversed(list(network.modules())) if is_called(module))
        handle = layer.register_forward_pre_hook(lambda *_, part=part: fault.passes(part))
        undo.callback(handle.remove)
    kind = type(pipeline.scheduler)
    own = kind.step

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        fault.passes("scheduler")
        return result

    undo.enter_context(mock.patch.object(kind, "step", step))


def is_called(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)) and module.weight.ndim > 1


def state(pipeline: Any) -> dict[str, Any]:
    """Return everything on a pipeline that a recording or a question could leave changed, in comparable form."""
    found: dict[str, Any] = {}
    for place, owner in enumerate((pipeline, *schedulers(pipeline))):
        for name, value in vars(owner).items():
            content = [id(one) for one in value] if type(value) in (list, dict) else None
            found[f"{place}.{name}"] = (id(value), content)
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            for name, module in network.named_modules():
                hooks = [list(getattr(module, key)) for key in vars(module) if key.endswith("_hooks")]
                processor = id(getattr(module, "processor", None))
                found[f"{part}.{name}"] = (sorted(vars(module)), hooks, processor, module.training)
            found[part] = [(w.dtype, w.device, w.requires_grad, w._version) for w in network.parameters()]
    return found


def picture(pipeline: Any, call: dict[str, Any]) -> np.ndarray:
    torch.manual_seed(0)
    return numbers(finished(pipeline(**call, generator=torch.Generator().manual_seed(3), output_type="np")))


class Watched:
    """A pipeline with a fault in it, its picture, and its state before it is explained."""

    def __init__(self, name: str, undo: ExitStack):
        build, call = CASES[name]
        self.fault, self.pipeline = Fault(), build()
        self.call = {**call, "callback_on_step_end": self.fault.callback}
        self.pipeline.set_progress_bar_config(disable=True)
        faulty(self.pipeline, self.fault, undo)
        self.picture = picture(self.pipeline, self.call)
        self.model = denoscope.load(self.pipeline)

    def trace(self) -> denoscope.Trace:
        return self.model.trace(**self.call, seed=3, output_type="np")

    def check(self, before: dict[str, Any]) -> None:
        """Assert that nothing is left, and that the next picture is the same."""
        self.fault.error = None
        after = state(self.pipeline)
        # A weight that was brought to another precision and back has been written to.
        assert [
            key for key in before | after if before.get(key) != after.get(key) and not moved(before, after, key)
        ] == []
        assert np.array_equal(picture(self.pipeline, self.call), self.picture)


def moved(before: dict[str, Any], after: dict[str, Any], key: str) -> bool:
    weights = (before.get(key), after.get(key))
    if key not in ("vae",) or None in weights:
        return False
    return [one[:3] for one in weights[0]] == [one[:3] for one in weights[1]]


@pytest.fixture
def undo():
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("name", CASES)
def test_a_recording_that_is_broken_off_leaves_nothing(name, undo):
    watched = Watched(name, undo)
    for part, error in FAULTS:
        before = state(watched.pipeline)
        watched.fault.arm(part, error, nth=1 if part == "autoencoder" else 2)
        with pytest.raises((InputError, RecordingError) if error is RuntimeError else error, match="struck"):
            watched.trace()
        watched.check(before)


@pytest.mark.parametrize("name", CASES)
def test_a_question_that_is_broken_off_leaves_nothing(name, undo):
    watched = Watched(name, undo)
    for part, error in FAULTS:
        trace, hits = watched.trace(), 0
        before = state(watched.pipeline)
        watched.fault.arm(part, error)
        for question in questions(trace):
            try:
                question()
            except (DenoscopeError, RuntimeError) as raised:
                assert error is RuntimeError and "struck" in str(raised)
            except KeyboardInterrupt:
                assert error is KeyboardInterrupt
            hits += watched.fault.hits
            watched.fault.hits = 0
        assert hits > 0
        watched.check(before)
        assert torch.isfinite(trace[1].predict(2 * trace[1].sample)).all()  # a later question is answered


def questions(trace: denoscope.Trace) -> list[Callable[[], Any]]:
    sample = trace[1].sample.clone().requires_grad_()
    return [
        lambda: trace[1].predict(1.1 * trace[1].sample),
        lambda: trace[0].predict(1.1 * trace[0].sample),
        lambda: trace[2].predict(sample),
        lambda: trace.decode(1.1 * trace[-1].prev_sample),
    ]


@pytest.mark.parametrize("name", CASES)
def test_recordings_and_answers_leave_nothing(name, undo):
    """Identity: the recorded picture is the plain one, and questions change no attribute at all."""
    watched = Watched(name, undo)
    trace = watched.trace()
    assert np.array_equal(numbers(trace.images), watched.picture)
    before = state(watched.pipeline)
    for question in questions(trace):
        question()
    watched.check(before)
