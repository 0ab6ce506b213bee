"""The calls of a running pipeline's denoiser and of its scheduler's `step`, as they pass by.

Listening never changes the pipeline's call and never ends it. A call that cannot be read is recorded with the reason.
"""

import copy
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...errors import RecordingError
from .surroundings import Autocast
from .trees import map_tensors, tensor_of

SAMPLE_NAMES = ("sample", "hidden_states")
"""The names that diffusers' denoisers have for the argument with the sample."""

STEP_NAMES = ("model_output", "timestep", "sample")
"""The arguments of a scheduler's step that are recorded, in diffusers' usual order."""

CHECKED_STEPS = {0, *(2**power for power in range(12))}
"""Steps at which the scheduler is asked for its own clean prediction, beside the run."""

_being_recorded: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a part of the pipeline: the arguments as they were passed, and the output as it was given.

    Lists and dicts of arguments are copies, since some networks empty them. Tensors are shared.
    """

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    autocast: Autocast = field(default_factory=Autocast.now)


@dataclass(frozen=True, eq=False)
class DecoderCall:
    """One call of `decode` of a part of the pipeline, its autoencoder."""

    name: str
    module: torch.nn.Module
    latents: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    autocast: Autocast = field(default_factory=Autocast.now)

    def without_output(self) -> "DecoderCall":
        """Return the call without the picture that it gave."""
        return replace(self, output=self.output[:0])


@dataclass(frozen=True, eq=False)
class SchedulerStep:
    """One call of `scheduler.step`.

    `sigma_index` is the scheduler's position in `sigmas`, where it has one. `scale` is the factor by which the
    scheduler's own `scale_model_input` multiplies the samples of this step. `problem` says why the call cannot be read
    as (model output, time step, sample); None if it can. `original` is the clean prediction that the scheduler itself
    returned beside the next sample, None if it returned none.
    """

    model_output: torch.Tensor
    timestep: float
    sample: torch.Tensor
    prev_sample: torch.Tensor
    sigma_index: int | None
    scale: float = 1.0
    problem: str | None = None
    original: torch.Tensor | None = None


OnStep = Callable[[list[ModuleCall], SchedulerStep, Any], None]
"""Called after each step with the calls of parts since the step before, the step and its scheduler."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What a recording has heard besides the steps: the calls of `decode` since the last step, and new beginnings.

    `beginnings` are the numbers of steps that were done when a scheduler's `set_timesteps` was called.
    """

    decodings: list[DecoderCall]
    beginnings: list[int]


@contextmanager
def recording(
    modules: Mapping[str, torch.nn.Module], schedulers: Mapping[str, Any], on_step: OnStep
) -> Iterator[Heard]:
    """Call `on_step` after every `scheduler.step`, with the calls of the pipeline's parts since the step before.

    `modules` are the networks of the pipeline by their names. A step without tensors for the prediction and the sample
    is passed over. Raises `RecordingError` if a network is already being recorded. Leaves all as it was.
    """
    _refuse_nested(modules)
    calls: list[ModuleCall] = []
    heard, depth, steps = Heard([], []), [0], [0]

    with ExitStack() as undo:
        _being_recorded.update(modules.values())
        for module in modules.values():
            undo.callback(_being_recorded.discard, module)
        for name, module in modules.items():
            undo.enter_context(_listening(name, module, depth, calls.append))
            if hasattr(module, "decode"):
                undo.enter_context(replaced_method(module, "decode", _decoding(name, module, heard.decodings)))
        for scheduler in {id(value): value for value in schedulers.values()}.values():
            stepped = _stepped(scheduler, calls, heard, steps, on_step)
            undo.enter_context(replaced_method(scheduler, "step", stepped))
            undo.enter_context(replaced_method(scheduler, "set_timesteps", _beginning(heard, steps)))
        yield heard


def _refuse_nested(modules: Mapping[str, torch.nn.Module]) -> None:
    for module in modules.values():
        if module in _being_recorded:
            raise RecordingError(
                f"This {type(module).__name__} is being recorded already. Recordings cannot be nested: "
                "let the first one finish, or load the pipeline a second time."
            )


@contextmanager
def _listening(
    name: str, module: torch.nn.Module, depth: list[int], on_call: Callable[[ModuleCall], None]
) -> Iterator[None]:
    """Call `on_call` after each call of a module that no other part made; the arguments are those before the call."""
    entered: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(map_tensors(lambda tensor: tensor, (args, kwargs)))
        depth[0] += 1

    def after(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        depth[0] = max(depth[0] - 1, 0)
        taken = entered.pop() if entered else (args, kwargs)
        if depth[0] == 0:
            on_call(ModuleCall(name, module, *taken, output))

    if module._compiled_call_impl is not None:  # compiled in its place: hooks inside may not run

        def called(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            before(module, args, kwargs)
            output = original(*args, **kwargs)
            after(module, args, kwargs, output)
            return output

        with replaced_method(module, "_compiled_call_impl", called):
            yield
        return
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _decoding(name: str, module: torch.nn.Module, decodings: list[DecoderCall]) -> Callable[..., Any]:
    def decode(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        latents, tensor = args[0] if args else kwargs.get("z"), tensor_of(output)
        if isinstance(latents, torch.Tensor) and tensor is not None:
            others = {key: value for key, value in kwargs.items() if key != "z"}
            decodings.append(DecoderCall(name, module, latents.detach(), args[1:], others, tensor.detach()))
        return output

    return decode


def _beginning(heard: Heard, steps: list[int]) -> Callable[..., Any]:
    def set_timesteps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        heard.beginnings.append(steps[0])
        return original(*args, **kwargs)

    return set_timesteps


def _stepped(
    scheduler: Any, calls: list[ModuleCall], heard: Heard, steps: list[int], on_step: OnStep
) -> Callable[..., Any]:
    """Return the step that hands what it sees to `on_step`, and to the pipeline what the scheduler returned."""

    def stepped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        owner = getattr(step, "__self__", scheduler)  # a copy of the scheduler that the pipeline made steps here too
        arguments = StepArguments.of(step, args, kwargs)
        with torch.inference_mode(False):  # what is recorded under it could have no gradients
            before = None if arguments is None else arguments.copied()
        scale = 1.0 if before is None else scheduler_scale(owner, before)
        own_original = _own_original(owner, step, args, kwargs) if steps[0] in CHECKED_STEPS and before else None
        result = step(*args, **kwargs)
        previous = sample_of_result(result)
        if before is not None and isinstance(previous, torch.Tensor):
            told = original_of_result(result)
            original = told if told is not None else own_original
            with torch.inference_mode(False), torch.no_grad():
                taken = before.scheduler_step(previous, _sigma_index(owner), scale, original)
                on_step(calls.copy(), taken, scheduler)
            steps[0] += 1
        calls.clear()
        heard.decodings.clear()
        return result

    return stepped


def sample_of_result(result: Any) -> Any:
    """Return the next sample that `scheduler.step` returned, in whichever form."""
    return result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", result)


def _own_original(
    scheduler: Any, step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Return the clean prediction of a scheduler's next step, asked of a copy with random streams of its own."""
    if "return_dict" not in inspect.signature(step).parameters or len(args) > len(STEP_NAMES):
        return None
    beside = copy.copy(scheduler)
    own = {key: value for key, value in vars(scheduler).items() if isinstance(value, (list, dict, torch.Tensor))}
    vars(beside).update(map_tensors(lambda tensor: tensor.detach().clone(), own))  # some write over them
    others = {key: value for key, value in kwargs.items() if key not in ("generator", "return_dict")}
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            return original_of_result(type(scheduler).step(beside, *args, **others, return_dict=True))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # recording must not end the user's call


def original_of_result(result: Any) -> torch.Tensor | None:
    """Return the clean prediction that `scheduler.step` returned under a name; None if it returned none."""
    for name in ("pred_original_sample", "denoised"):
        value = getattr(result, name, None)
        if isinstance(value, torch.Tensor):
            return value
    return None


@contextmanager
def stepping(scheduler: Any, on_step: Callable[["StepArguments"], None]) -> Iterator[None]:
    """Call `on_step` after every `scheduler.step`, with what it was passed. It may be open around a recording."""

    def stepped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = StepArguments.of(step, args, kwargs)
        passed = None if arguments is None else arguments.copied()
        result = step(*args, **kwargs)
        if passed is not None:
            on_step(passed)
        return result

    with replaced_method(scheduler, "step", stepped):
        yield


@contextmanager
def replaced_method(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """While open, `owner.name(...)` is `replacement(original, ...)` with the original's signature.

    An owner without such a method is left alone. The attributes of a compiled module are set on itself, and not on the
    network inside, as its own `setattr` does.
    """
    original, attributes = getattr(owner, name, None), vars(owner)
    instance_value = attributes.get(name)
    if original is None:
        yield
        return
    attributes[name] = functools.wraps(original)(functools.partial(replacement, original))
    try:
        yield
    finally:
        if instance_value is None:
            attributes.pop(name, None)
        else:
            attributes[name] = instance_value


@dataclass(frozen=True, eq=False)
class StepArguments:
    """The arguments of one call of `scheduler.step` that are recorded, and why they cannot be relied on, or None."""

    model_output: torch.Tensor
    timestep: Any
    sample: torch.Tensor
    problem: str | None
    names: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

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
        return cls(model_output, timestep, sample, problem, tuple(names), args, kwargs)

    def with_values(self, values: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the step's arguments with other values for some that it has by these names."""
        named = {name: value for name, value in values.items() if name in self.kwargs}
        args = [values.get(name, value) for name, value in zip(self.names, self.args, strict=False)]
        return (*args, *self.args[len(args) :]), {**self.kwargs, **named}

    def copied(self) -> "StepArguments":
        """Return the arguments as they are now, whatever the scheduler writes into its tensors."""
        model_output, sample = self.model_output.detach().clone(), self.sample.detach().clone()
        return StepArguments(model_output, self.timestep, sample, self.problem)

    def scheduler_step(
        self, previous: torch.Tensor, sigma_index: int | None, scale: float, original: torch.Tensor | None = None
    ) -> SchedulerStep:
        """Return the recorded step, with the sample that it led to."""
        timestep, following = _number(self.timestep), previous.detach().clone()
        return SchedulerStep(
            self.model_output, timestep, self.sample, following, sigma_index, scale, self.problem, original
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
