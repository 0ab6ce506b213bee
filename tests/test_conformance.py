"""Every method over every family: a map with its coordinates, or one readable refusal, and nothing left behind.

`python tests/test_conformance.py` prints the table below as it is measured now."""

import dataclasses
import functools
import hashlib
import json
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from small import FAMILIES, refusal

import denoscope
from denoscope.attributors.base import method
from denoscope.errors import DenoscopeError, Interrupted

# Tables.

REFUSED: dict[tuple[str, str], str] = {
    ("relevance-reference", "pixart"): "The published arithmetic reads the negative prompt, which is masked",
    ("df-cam-reference", "pixart"): "The published code guides gradients and activations each on its own,",
    ("df-cam-reference", "dit"): "The published code guides gradients and activations each on its own,",
    ("relevance", "dit"): "DiTPipeline has no words to give relevance to: its denoiser reads no",
    ("relevance-reference", "dit"): "DiTPipeline has no words to give relevance to: its denoiser reads no",
    ("words", "dit"): "DiTPipeline takes no prompt, so there are no words to show. Load a",
    ("concepts", "dit"): "DiTPipeline takes no prompt, so there are no words to show. Load a",
    ("relevance", "ddpm"): "DDPMPipeline has no words to give relevance to: its denoiser reads no",
    ("relevance-reference", "ddpm"): "DDPMPipeline has no words to give relevance to: its denoiser reads no",
    ("words", "ddpm"): "DDPMPipeline takes no prompt, so there are no words to show. Load a",
    ("concepts", "ddpm"): "DDPMPipeline takes no prompt, so there are no words to show. Load a",
    ("relevance", "ddim"): "DDIMPipeline has no words to give relevance to: its denoiser reads no",
    ("relevance-reference", "ddim"): "DDIMPipeline has no words to give relevance to: its denoiser reads no",
    ("words", "ddim"): "DDIMPipeline takes no prompt, so there are no words to show. Load a",
    ("concepts", "ddim"): "DDIMPipeline takes no prompt, so there are no words to show. Load a",
    ("df-cam-reference", "animatediff"): "The published code guides gradients and activations each on its own,",
    ("relevance", "animatediff"): "The layer down_blocks.0.attentions.0.transformer_blocks.0.attn2 attends within each",
    (
        "relevance-reference",
        "animatediff",
    ): "The layer down_blocks.0.attentions.0.transformer_blocks.0.attn2 attends within each",
    ("df-cam-reference", "wan"): "The published code guides gradients and activations each on its own,",
}
"""Cells that are refused, with a part of the message. All others give a map."""

NUMBER_OF_CELLS = 143
CLASS_METHODS = {
    "gradient-shap": denoscope.GradientShap,
    "integrated-gradients": denoscope.IntegratedGradients,
    "occlusion": denoscope.Occlusion,
}
METHODS = sorted({*denoscope.list_methods(), *CLASS_METHODS})
CELLS = [(name, family) for family in FAMILIES for name in METHODS]
SLOW = ("animatediff", "dit")
"""Families that are asked one sample at a time, which takes long: `make slow` runs their cells."""


def marked(name: str, family: str) -> Any:
    """A cell as pytest's parameters."""
    return pytest.param(name, family, marks=[pytest.mark.slow] if family in SLOW else [])


CHEAP = {
    "concepts": ("blue sky", "red"),
    "num_masks": 16,
    "num_samples": 8,
    "max_dist": 2.0,  # more segments of LIME
    "n_steps": 2,
    "n_samples": 2,
    "sliding_window_shapes": (1, 4, 4),
    "strides": (1, 4, 4),
}
"""Options that make a method cheap; a method takes those that it has."""
CHEAP_FOR_CLIPS = {**CHEAP, "sliding_window_shapes": (4, 1, 2, 2), "strides": (4, 1, 2, 2), "max_dist": 0.5}
STEPS = 3
EXPLAINED = [0, 2]
ENGINES = ("direct", "resumed in batches", "resumed one by one")


def test_the_number_of_cells():
    assert len(CELLS) == NUMBER_OF_CELLS, "a method or a family came or went: measure the tables again"


def test_the_table_names_cells_that_are_there():
    assert {*REFUSED} <= {*CELLS}


# A run of each family.


class Judge(torch.nn.Module):
    """A classifier with every state that explaining could disturb: it trains, has dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(3 * 8 * 8, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.norm(pictures)).flatten(1))


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A family's pipeline, the arguments of its call, a trace, and the picture of a call without Denoscope."""

    pipeline: Any
    call: dict[str, Any]
    model: Any
    trace: Any
    picture: np.ndarray


@functools.cache
def judge() -> denoscope.Classifier:
    return denoscope.load_classifier(Judge(), labels=["one", "two", "three"], size=8, mean=0.5, std=0.5)


@functools.cache
def run_of(family: str) -> Run:
    build, arguments = FAMILIES[family]
    pipeline, call = build(), {**arguments, "num_inference_steps": STEPS, "output_type": "np"}
    pipeline.set_progress_bar_config(disable=True)
    picture = picture_without_denoscope(pipeline, call)
    model = denoscope.load(pipeline)
    return Run(pipeline, call, model, model.trace(seed=1, **call), picture)


def picture_without_denoscope(pipeline: Any, call: dict[str, Any]) -> np.ndarray:
    return picture_in(pipeline(**call, generator=torch.Generator().manual_seed(1)))


def picture_in(output: Any) -> np.ndarray:
    """The picture, or the video, that a pipeline returned."""
    return np.asarray(output.frames if "frames" in output else output.images)


def attributor(name: str, trace: Any) -> Any:
    """A method with its cheapest options; a method that explains a class explains the judge's."""
    kind = CLASS_METHODS.get(name)
    explains = method(name) if kind is None else kind(denoscope.ClassScore(judge(), "two"))
    options = {field.name for field in dataclasses.fields(explains)}
    cheap = CHEAP if trace[0].layout.frames is None else CHEAP_FOR_CLIPS
    return dataclasses.replace(explains, **{key: value for key, value in cheap.items() if key in options})


# State that must not change.

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state_of(pipeline: Any, *others: torch.nn.Module) -> dict[str, Any]:
    """Everything that could be left on a pipeline, on other modules or in the process, by where it is."""
    state: dict[str, Any] = {
        "scheduler": (id(pipeline.scheduler), dict(pipeline.scheduler.config), replaced_methods(pipeline.scheduler)),
        "pipeline": (id(type(pipeline).__call__), replaced_methods(pipeline)),
        "process": state_of_process(),
    }
    roots = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    roots |= {f"other {number}": module for number, module in enumerate(others)}
    for name, root in roots.items():
        for path, module in root.named_modules():
            state[f"{name}.{path}"] = state_of_module(module)
    return state


def state_of_module(module: torch.nn.Module) -> dict[str, Any]:
    """Hooks, processor, attributes, mode, weights and buffers of one module, without those of modules below it."""
    tensors = {**module._parameters, **module._buffers}
    return {
        "identity": id(module),
        "training": module.training,
        "hooks": [list(getattr(module, kind)) for kind in HOOKS],
        "processor": id(getattr(module, "processor", None)),
        "attributes": sorted(vars(module)),  # a replaced `forward` would be among them
        "tensors": {name: state_of_tensor(tensor) for name, tensor in tensors.items() if tensor is not None},
    }


def state_of_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    digest = hashlib.blake2b(tensor.detach().numpy().tobytes()).hexdigest()
    return id(tensor), tensor.requires_grad, tensor.grad is None, bool(tensor._backward_hooks), digest


def replaced_methods(owner: Any) -> list[str]:
    """The methods that stand on an object itself, in front of its class's."""
    return sorted(name for name, value in vars(owner).items() if callable(value) and hasattr(type(owner), name))


def state_of_process() -> dict[str, Any]:
    """The global random streams and modes."""
    return {
        "torch's random stream": torch.get_rng_state().numpy().tobytes(),
        "numpy's random stream": pickle.dumps(np.random.get_state()),
        "Python's random stream": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch._C._len_torch_function_stack(), torch.get_num_threads()),
        "hooks of all modules": list(torch.nn.modules.module._global_forward_hooks),
    }


@contextmanager
def untouched(pipeline: Any) -> Iterator[None]:
    """Assert that the block leaves nothing on the pipeline, the judge and the process."""
    before = state_of(pipeline, judge().module)
    yield
    after = state_of(pipeline, judge().module)
    changed = {place for place in {**before, **after} if before.get(place) != after.get(place)}
    assert not changed, f"left behind: {sorted(changed)}"


# Failures in the middle.


class Broken(RuntimeError):
    """A failure of the network itself."""


ALLOWED: dict[type[BaseException], Any] = {Broken: (Broken, DenoscopeError), KeyboardInterrupt: Interrupted}
"""The failures that are tried, and what an explanation may raise then."""


@contextmanager
def failing(denoiser: torch.nn.Module, failure: type[BaseException], after: float) -> Iterator[list[int]]:
    """Fail inside the denoiser's last attention once that was called so often; yields the number of its calls."""
    inside = [module for path, module in denoiser.named_modules() if path.endswith(".to_v")][-1]
    calls = [0]

    def fail(module: torch.nn.Module, args: tuple) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise failure

    handle = inside.register_forward_pre_hook(fail)
    try:
        yield calls
    finally:
        handle.remove()


# The cells.


@pytest.mark.parametrize(("name", "family"), [marked(*cell) for cell in CELLS])
def test_cell(name, family):
    run, cell = run_of(family), (name, family)
    explain = functools.partial(attributor(name, run.trace), run.trace, EXPLAINED)
    with untouched(run.pipeline):
        if cell in REFUSED:
            message = refusal(explain, kind=DenoscopeError)
            assert REFUSED[cell] in message
            assert refusal(explain, kind=DenoscopeError) == message
        else:
            check_maps(explain(), run.trace)
    if cell not in REFUSED:
        check_failures(run, explain)
    assert np.array_equal(picture_without_denoscope(run.pipeline, run.call), run.picture), "another picture than before"


def check_maps(maps: xr.Dataset, trace: Any) -> None:
    """One finite map a step that differs from place to place, labelled with the trace's own coordinates.

    A clip has a map for every frame of its samples.
    """
    steps = [trace[index] for index in EXPLAINED]
    labels = {
        "step": EXPLAINED,
        "timestep": [step.timestep for step in steps],
        "log_snr": [step.log_snr for step in steps],
    }
    for name, values in labels.items():
        assert maps.coords[name].dims == ("step",)
        assert maps.coords[name].values.tolist() == values
    saliency, layout = maps["saliency"], trace[0].layout
    assert {"step", *layout.dims} <= set(saliency.dims)
    assert tuple(saliency.sizes[name] for name in layout.dims) == layout.shape
    assert ("frame" in saliency.dims) == (layout.frames is not None)
    if layout.frames is not None:
        assert maps.coords["frame"].values.tolist() == list(range(layout.frames))
    assert maps.attrs.get("engine", "direct") in ENGINES
    assert np.isfinite(saliency).all()
    assert (saliency.std(("y", "x")) > 0).all(), "a flat map"


def check_failures(run: Run, explain: Callable[[], xr.Dataset]) -> None:
    """Explain again for the same maps; then break off half-way, by an exception and by Ctrl-C, without a trace."""
    with failing(run.model.denoiser, Broken, after=np.inf) as calls:
        maps = explain()
    for failure, allowed in ALLOWED.items():
        with (
            untouched(run.pipeline),
            failing(run.model.denoiser, failure, after=calls[0] // 2),
            pytest.raises(allowed) as stopped,
        ):
            explain()
        partial = getattr(stopped.value, "partial", None)
        assert partial is None or partial.identical(maps.sel(step=partial["step"])), "other maps under the same seed"


# Recording itself.

HOW = {"as it is": {}, "early": {"schedule": "early", "shift": 3.0}, "swapped": {"scheduler": "ddpm"}}
"""Ways to record that change the scheduler meanwhile."""
RECORDINGS = [("as it is", family) for family in FAMILIES]
RECORDINGS += [(how, "stable-diffusion") for how in HOW if how != "as it is"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_picture_is_the_pipelines_own(family):
    run = run_of(family)
    assert np.array_equal(picture_in(run.trace.result), run.picture)


@pytest.mark.parametrize(("how", "family"), RECORDINGS)
def test_recording_leaves_nothing(how, family):
    run = run_of(family)
    record = functools.partial(run.model.trace, seed=1, **run.call, **HOW[how])
    with untouched(run.pipeline):
        record()
    for failure in ALLOWED:
        allowed = (failure, DenoscopeError)
        with untouched(run.pipeline), failing(run.model.denoiser, failure, after=2), pytest.raises(allowed):
            record()
    assert np.array_equal(picture_without_denoscope(run.pipeline, run.call), run.picture), "another picture than before"


def test_listening_to_words_while_recording_leaves_nothing():
    run = run_of("stable-diffusion")
    with untouched(run.pipeline), denoscope.Words().recording(run.model):
        run.model.trace(seed=1, **run.call)
    for failure in ALLOWED:
        allowed = (failure, DenoscopeError)
        with (
            untouched(run.pipeline),
            failing(run.model.denoiser, failure, after=2),
            pytest.raises(allowed),
            denoscope.Words().recording(run.model),
        ):
            run.model.trace(seed=1, **run.call)


# The tables, measured.


def refused_with(explain: Callable[[], Any]) -> str | None:
    """Return the message that an explanation is refused with, None where there is a map."""
    try:
        explain()
    except DenoscopeError as error:
        return str(error)
    return None


def shortened(message: str, longest: int = 70) -> str:
    """Whole words from the beginning of a message."""
    return message if len(message) <= longest else message[:longest].rsplit(" ", 1)[0]


quoted = functools.partial(json.dumps, ensure_ascii=False)


def print_table() -> None:
    """Print REFUSED as it is measured, to be pasted above; an exception that is not Denoscope's own is raised."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
    print("REFUSED: dict[tuple[str, str], str] = {")
    for name, family in CELLS:
        trace = run_of(family).trace
        message = refused_with(functools.partial(attributor(name, trace), trace, EXPLAINED))
        if message is not None:
            print(f"    ({quoted(name)}, {quoted(family)}): {quoted(shortened(message))},")
    print("}")


if __name__ == "__main__":
    print_table()
