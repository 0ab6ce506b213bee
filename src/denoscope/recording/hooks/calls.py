"""What goes through the denoiser and the scheduler of a running pipeline."""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import CaptureError, RecordingError

SAMPLE_NAMES = ("sample", "hidden_states")

_being_recorded: weakref.WeakSet = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One call of the denoiser: its arguments as they were passed and its output."""

    args: tuple
    kwargs: dict[str, Any]
    output: torch.Tensor


@dataclass(frozen=True, eq=False)
class SchedulerStep:
    """One call of `scheduler.step`; `sigma_index` is the scheduler's position in `sigmas`, where it has one."""

    model_output: torch.Tensor
    timestep: float
    sample: torch.Tensor
    prev_sample: torch.Tensor
    sigma_index: int | None


@contextmanager
def recording(
    denoiser: torch.nn.Module, scheduler: Any, on_step: Callable[[list[DenoiserCall], SchedulerStep], None]
) -> Iterator[None]:
    """Call `on_step` after every `scheduler.step`, with the denoiser's calls since the step before.

    Raises `RecordingError` when the denoiser is already being recorded. Leaves denoiser and scheduler as they were.
    """
    if denoiser in _being_recorded:
        raise RecordingError(
            f"This {type(denoiser).__name__} is being recorded already. Recordings cannot be nested: "
            "let the first one finish, or load the pipeline a second time."
        )
    calls: list[DenoiserCall] = []

    def heard(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.append(DenoiserCall(args, kwargs, output_of(output).detach()))

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        model_output, timestep, sample = _step_arguments(*args, **kwargs)
        kept = sample.detach().clone(), model_output.detach().clone()
        result = step(*args, **kwargs)
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        position = getattr(scheduler, "step_index", None)
        sigma_index = None if position is None else position - 1
        on_step(calls.copy(), SchedulerStep(kept[1], float(timestep), kept[0], previous.detach().clone(), sigma_index))
        calls.clear()
        return result

    _being_recorded.add(denoiser)
    handle = denoiser.register_forward_hook(heard, with_kwargs=True)
    try:
        with replaced_method(scheduler, "step", stepped):
            yield
    finally:
        handle.remove()
        _being_recorded.discard(denoiser)


@contextmanager
def denoising(
    denoiser: torch.nn.Module,
    scheduler: Any,
    on_call: Callable[[torch.Tensor], None],
    on_step: Callable[[torch.Tensor], None],
) -> Iterator[None]:
    """Call `on_call` before every call of the denoiser and `on_step` after every `scheduler.step`, with their samples.

    It may be open around a recording. Leaves denoiser and scheduler as they were.
    """

    def called(module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        given = args[:1] or [kwargs[name] for name in SAMPLE_NAMES if name in kwargs]
        if not given:
            raise CaptureError(f"No argument of the {type(module).__name__} is called {' or '.join(SAMPLE_NAMES)}.")
        on_call(given[0])

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        sample = _step_arguments(*args, **kwargs)[2].detach().clone()
        result = step(*args, **kwargs)
        on_step(sample)
        return result

    handle = denoiser.register_forward_pre_hook(called, with_kwargs=True)
    try:
        with replaced_method(scheduler, "step", stepped):
            yield
    finally:
        handle.remove()


@contextmanager
def replaced_method(owner: Any, name: str, replacement: Callable) -> Iterator[None]:
    """While open, `owner.name(...)` is `replacement(original, ...)` with the original's signature."""
    original, own = getattr(owner, name), vars(owner).get(name)
    setattr(owner, name, functools.wraps(original)(functools.partial(replacement, original)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _step_arguments(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, torch.Tensor]:
    names = ("model_output", "timestep", "sample")
    given = dict(zip(names, args, strict=False)) | kwargs
    return tuple(given[name] for name in names)


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts; everything else stays."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def shared_tensors(tree: Any, earlier: Any) -> Any:
    """The same tree with every tensor that equals its counterpart in `earlier` replaced by that one; others copied."""
    if isinstance(tree, torch.Tensor):
        same = isinstance(earlier, torch.Tensor) and earlier.shape == tree.shape and torch.equal(earlier, tree)
        return earlier if same else tree.detach().clone()
    if isinstance(tree, dict):
        earlier = earlier if isinstance(earlier, dict) else {}
        return {key: shared_tensors(value, earlier.get(key)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        known = earlier if isinstance(earlier, (tuple, list)) and len(earlier) == len(tree) else [None] * len(tree)
        return type(tree)(shared_tensors(a, b) for a, b in zip(tree, known, strict=True))
    return tree


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Every tensor of nested tuples, lists and dicts."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, tree)
    return found


def output_of(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample
