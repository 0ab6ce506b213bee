"""The calls of a running pipeline's denoiser and of its scheduler's `step`, as they pass by.

Listening never changes the pipeline's call and never ends it. A call that cannot be read is recorded with the reason.
"""

import copy
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import CaptureError, RecordingError

SAMPLE_NAMES = ("sample", "hidden_states")
"""The names that diffusers' denoisers have for the argument with the sample."""

STEP_NAMES = ("model_output", "timestep", "sample")
"""The arguments of a scheduler's step that are recorded, in diffusers' usual order."""

_being_recorded: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One call of the denoiser: its arguments as they were passed, and its output, None if that is no tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class SchedulerStep:
    """One call of `scheduler.step`.

    `sigma_index` is the scheduler's position in `sigmas`, where it has one. `scale` is the factor by which the
    scheduler's own `scale_model_input` multiplies the samples of this step. `problem` says why the call cannot be read
    as (model output, time step, sample); None if it can.
    """

    model_output: torch.Tensor
    timestep: float
    sample: torch.Tensor
    prev_sample: torch.Tensor
    sigma_index: int | None
    scale: float = 1.0
    problem: str | None = None


@contextmanager
def recording(
    denoiser: torch.nn.Module, scheduler: Any, on_step: Callable[[list[DenoiserCall], SchedulerStep], None]
) -> Iterator[None]:
    """Call `on_step` after every `scheduler.step`, with the denoiser's calls since the step before.

    A step without tensors for the prediction and the sample is passed over. Raises `RecordingError` if the denoiser is
    already being recorded. Leaves denoiser and scheduler as they were.
    """
    if denoiser in _being_recorded:
        raise RecordingError(
            f"This {type(denoiser).__name__} is being recorded already. Recordings cannot be nested: "
            "let the first one finish, or load the pipeline a second time."
        )
    calls: list[DenoiserCall] = []

    def on_output(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensor = tensor_of(output)
        calls.append(DenoiserCall(args, kwargs, None if tensor is None else tensor.detach()))

    def stepped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = StepArguments.of(step, args, kwargs)
        with torch.inference_mode(False):  # what is recorded under it could have no gradients
            before = None if arguments is None else arguments.copied()
        scale = 1.0 if before is None else scheduler_scale(scheduler, before)
        result = step(*args, **kwargs)
        previous = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", result)
        if before is not None and isinstance(previous, torch.Tensor):
            with torch.inference_mode(False), torch.no_grad():
                on_step(calls.copy(), before.scheduler_step(previous, _sigma_index(scheduler), scale))
        calls.clear()
        return result

    _being_recorded.add(denoiser)
    handle = denoiser.register_forward_hook(on_output, with_kwargs=True)
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

    It may be open around a recording. Leaves denoiser and scheduler as they were. Raises `CaptureError` for a denoiser
    or a `step` without an argument for the sample.
    """

    def called(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        samples = args[:1] or [kwargs[name] for name in SAMPLE_NAMES if name in kwargs]
        if not samples:
            raise CaptureError(f"No argument of the {type(module).__name__} is called {' or '.join(SAMPLE_NAMES)}.")
        on_call(samples[0])

    def stepped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = StepArguments.of(step, args, kwargs)
        if arguments is None:
            raise CaptureError(f"{type(scheduler).__name__}.step takes no sample, so its steps cannot be listened to.")
        sample = arguments.sample.detach().clone()
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
def replaced_method(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """While open, `owner.name(...)` is `replacement(original, ...)` with the original's signature.

    An owner without such a method is left alone.
    """
    original, instance_value = getattr(owner, name, None), vars(owner).get(name)
    if original is None:
        yield
        return
    setattr(owner, name, functools.wraps(original)(functools.partial(replacement, original)))
    try:
        yield
    finally:
        if instance_value is None:
            delattr(owner, name)
        else:
            setattr(owner, name, instance_value)


@dataclass(frozen=True, eq=False)
class StepArguments:
    """The arguments of one call of `scheduler.step` that are recorded, and why they cannot be relied on, or None."""

    model_output: torch.Tensor
    timestep: Any
    sample: torch.Tensor
    problem: str | None

    @classmethod
    def of(cls, step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "StepArguments | None":
        """Read the arguments by their names; None if there is no tensor for the prediction or for the sample."""
        names = _parameters(step)
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        missing = [name for name in STEP_NAMES if name not in values]
        sample = values.get("sample", next((values[name] for name in values if name.startswith("sample")), None))
        model_output, timestep = values.get("model_output"), values.get("timestep", math.nan)
        if not isinstance(model_output, torch.Tensor) or not isinstance(sample, torch.Tensor):
            return None
        problem = None
        if missing:
            problem = f"its scheduler's step has no argument {' and no '.join(missing)}, but {', '.join(names)}"
        elif isinstance(timestep, torch.Tensor) and not bool((timestep == timestep.flatten()[:1]).all()):
            problem = f"one scheduler step takes {timestep.numel()} time steps that differ"
        return cls(model_output, timestep, sample, problem)

    def copied(self) -> "StepArguments":
        """Return the arguments as they are now, whatever the scheduler writes into its tensors."""
        model_output, sample = self.model_output.detach().clone(), self.sample.detach().clone()
        return StepArguments(model_output, self.timestep, sample, self.problem)

    def scheduler_step(self, previous: torch.Tensor, sigma_index: int | None, scale: float) -> SchedulerStep:
        """Return the recorded step, with the sample that it led to."""
        prev_sample = previous.detach().clone()
        return SchedulerStep(
            self.model_output, _number(self.timestep), self.sample, prev_sample, sigma_index, scale, self.problem
        )


def _parameters(step: Callable[..., Any]) -> list[str]:
    """Return the names of a step's arguments, diffusers' usual ones for a wrapper that takes any."""
    parameters = inspect.signature(step).parameters
    takes_any = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    return list(STEP_NAMES) if takes_any else list(parameters)


def _number(timestep: Any) -> float:
    """Return a time step as a number, the first of several; NaN if it is none."""
    first = timestep.flatten()[0] if isinstance(timestep, torch.Tensor) and timestep.numel() else timestep
    try:
        return float(first)
    except (RuntimeError, TypeError, ValueError):
        return math.nan


def scheduler_scale(scheduler: Any, arguments: StepArguments) -> float:
    """Return the factor by which the scheduler brings a sample of its next step to the denoiser's input.

    Its own `scale_model_input` is asked, on a copy, so that its counters stay. 1 if it has none, NaN if it fails.
    """
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    ones = torch.ones(1, dtype=torch.float32, device=arguments.sample.device)
    try:
        return float(copy.copy(scheduler).scale_model_input(ones, arguments.timestep))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return math.nan  # recording must not end the user's call; the noise level is refused when it is asked for


def _sigma_index(scheduler: Any) -> int | None:
    """Return the position in `sigmas` of the step that was just taken; None for schedulers that count none."""
    position = getattr(scheduler, "step_index", None)
    return None if position is None else int(position) - 1


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
    """Return the tree with every tensor that equals its counterpart in `earlier` shared with it, the others copied."""
    if isinstance(tree, torch.Tensor):
        same = isinstance(earlier, torch.Tensor) and earlier.shape == tree.shape and torch.equal(earlier, tree)
        return earlier if same else tree.detach().clone()
    if isinstance(tree, dict):
        earlier = earlier if isinstance(earlier, dict) else {}
        return {key: shared_tensors(value, earlier.get(key)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        alike = isinstance(earlier, (tuple, list)) and len(earlier) == len(tree)
        counterparts = earlier if alike else [None] * len(tree)
        return type(tree)(shared_tensors(a, b) for a, b in zip(tree, counterparts, strict=True))
    return tree


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Return every tensor of nested tuples, lists and dicts."""
    tensors: list[torch.Tensor] = []
    map_tensors(tensors.append, tree)
    return tensors


def tensor_of(output: Any) -> torch.Tensor | None:
    """Return the tensor that a module gave: its output, the first of several, or `sample`; None if that is none."""
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "sample", None)
    return output if isinstance(output, torch.Tensor) else None


def output_of(output: Any) -> torch.Tensor:
    """Return the tensor that a module gave; raises `CaptureError` if it gave none."""
    tensor = tensor_of(output)
    if tensor is None:
        raise CaptureError(
            f"A module of the denoiser gave {type(output).__name__} and no tensor, so its output cannot be read. "
            "Choose layers that give a tensor."
        )
    return tensor
