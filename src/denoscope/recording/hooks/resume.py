"""The pipeline's own call again, from the middle: the resumed engine.

Before the step in question nothing is computed: each call of a network is answered with zeros of the recorded shapes,
the scheduler takes its recorded steps, and the step before hands on other samples than the recorded ones. From there
the pipeline's own code runs, with everything that it does between its networks and its scheduler. The call is broken
off where the answer is there, and the pipeline is put back as it was.
"""

import copy
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import ReplayError
from .blanks import filled, same_tree
from .calls import ModuleCall, StepArguments, replaced_method, sample_of_result
from .recorded import RecordedCall, RecordedStep, generators_in
from .restoring import restored
from .surroundings import weights_kept
from .trees import copied, map_tensors

COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")
"""Arguments of a pipeline's call that make several pictures of one prompt."""
NOISE = "randn_tensor"
"""The function of diffusers that draws noise, in the module of a pipeline."""
PREPARES = "prepare_"
"""The beginning of the names of a pipeline's methods that return first samples, `prepare_latents` as a rule."""
NO_JUDGES = ("safety_checker", "watermark")
"""Parts that change finished pictures, and are left out when other samples are decoded."""


class Reached(BaseException):
    """The answer is there, and the rest of the call is not needed. No pipeline catches it."""


@dataclass(frozen=True)
class Entry:
    """Where samples enter a resumed call: what the step before returns, its callback, or the first samples' function.

    The first samples' function is named by `kind`; `ordinal` is its call, `path` the tensor in what it returned, and
    `factor` the recorded sample's multiple of that tensor. `repeated` is False where the pipeline repeats it later, and
    `by_frames` True where it makes a row of each frame of (n, channels, frames, h, w).
    """

    kind: str = "step"
    ordinal: int = 0
    path: tuple[int, ...] = ()
    factor: float = 1.0
    repeated: bool = True
    by_frames: bool = False


@dataclass(eq=False)
class Answer:
    """What a resumed call has come to."""

    prediction: torch.Tensor | None = None
    arrived: torch.Tensor | None = None
    result: Any = None
    calls: list[ModuleCall] = field(default_factory=list)
    firsts: list[tuple[str, int, tuple[int, ...], torch.Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """A resumed call to make: `samples` (all rows) enter behind step `before` and are asked about at step `place`.

    `before` is None for the first samples of the call, and `place` None to go on to the pictures. `count` is how many
    times the recorded batch the samples are. `computed` lets the networks compute what comes before, for pipelines
    that need their outputs: guidance with momentum, caches of keys and values, maps of attention. `judged` leaves the
    safety checker in its place, for pipelines that make no pictures without it.

    `inputs_only` computes no denoiser at all: `Answer.calls` has the arguments of the calls of step `place`. `instead`
    are other arguments of the pipeline's call, by name, and `on_network` is shown what the other networks give, of
    which `fresh` are computed each time.
    """

    samples: torch.Tensor
    place: int | None
    before: int | None
    entry: Entry
    count: int = 1
    gradient: bool = False
    output_type: str = "pt"
    computed: bool = False
    judged: bool = False
    inputs_only: bool = False
    instead: Mapping[str, Any] = field(default_factory=dict)
    on_network: "OnNetwork | None" = None
    fresh: frozenset[str] = frozenset()


OnNetwork = Callable[[str, int, tuple[Any, ...], dict[str, Any], Any], Any]
"""Called with the name of a network that is not a denoiser, the number of its call, its arguments and its output;
returns the output that the pipeline is handed."""


@dataclass(eq=False)
class Resumption:
    """Resumed calls of one recorded call.

    `repeated` are the networks that are called again at later steps, `timesteps` a context in which the scheduler has
    the time steps of the recorded call, and `contexts` others that were open around it. `home` is the device of the
    pipeline's samples if the recorded tensors are kept elsewhere. `lacks` names what of the call could not be stored
    in a folder, so that it cannot be made again.
    """

    call: RecordedCall
    steps: list[RecordedStep]
    modules: Mapping[str, torch.nn.Module]
    schedulers: Mapping[str, Any]
    denoisers: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    timesteps: Callable[[], Any] = nullcontext
    memory: dict[tuple[str, int], tuple[Any, Any]] = field(default_factory=dict)
    contexts: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)
    home: torch.device | None = None
    lacks: tuple[str, ...] = ()

    def recorded(self, place: int) -> RecordedStep:
        """Return the recorded tensors of a step, on the device where the pipeline has them."""
        return self.steps[place] if self.home is None else self.steps[place].to(self.home)

    def count_argument(self) -> str | None:
        """Return the argument of the pipeline's call by which it makes several pictures at once; None if it has none.

        None too for a call with a generator for each picture.
        """
        if any(isinstance(value, list) and generators_in(value) for value in self.call.kwargs.values()):
            return None
        parameters = inspect.signature(self.call.pipeline.__call__).parameters
        return next((name for name in COUNTS if name in parameters), None)

    def ask(self, question: Question, answer: Answer | None = None) -> Answer:
        """Make a resumed call; raises as the pipeline does, and `ReplayError` if it goes another way than before.

        `answer` is filled as far as the call comes.
        """
        if self.lacks:
            raise ReplayError(
                f"The call cannot be made again: {' and '.join(self.lacks)} could not be stored in the folder that "
                "this trace was loaded from. Record the picture again, without that if it is not needed."
            )
        answer, pipeline = Answer() if answer is None else answer, self.call.pipeline
        running = _Running(self, question, answer)
        args, kwargs = self._arguments(question, running)
        run = type(pipeline).__call__
        run = inspect.unwrap(run) if question.gradient else torch.no_grad()(run)
        with ExitStack() as undo:
            undo.callback(_RESUMING.reset, _RESUMING.set(True))
            undo.enter_context(restored(pipeline, self.schedulers.values()))
            vars(pipeline).update(self.schedulers)
            undo.enter_context(_in_silence(pipeline))
            undo.enter_context(torch.inference_mode(False))
            undo.enter_context(torch.enable_grad() if question.gradient else torch.no_grad())
            undo.enter_context(weights_kept(*(self.modules.values() if question.gradient else ())))
            undo.enter_context(self.call.common_streams())
            undo.enter_context(self.call.autocast.again())
            undo.enter_context(self.timesteps())
            for context in self.contexts:
                undo.enter_context(context())
            running.listen(undo)
            with suppress(Reached):
                answer.result = run(pipeline, *args, **kwargs)
        if question.place is not None and answer.prediction is None:
            raise ReplayError("The pipeline, called again, ended before the step that is asked about.")
        return answer

    def _arguments(self, question: Question, running: "_Running") -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = self.call.arguments()
        parameters = inspect.signature(self.call.pipeline.__call__).parameters
        if question.instead:
            args, kwargs = (), dict(zip(parameters, args, strict=False)) | kwargs | dict(question.instead)
        if question.count > 1:
            name = self.count_argument()
            if name is None:
                raise ReplayError("This pipeline's call has no argument that makes several pictures of one prompt.")
            given = kwargs.get(name, parameters[name].default)
            kwargs[name] = question.count * (given if isinstance(given, int) else 1)
        if question.place is None:
            wanted = {"output_type": question.output_type, "return_dict": True}
            kwargs |= {name: value for name, value in wanted.items() if name in parameters}
        if question.entry.kind == "callback":
            kwargs["callback_on_step_end"] = running.callback(kwargs.get("callback_on_step_end"))
        return args, kwargs


_RESUMING: ContextVar[bool] = ContextVar("resuming", default=False)


def resuming() -> bool:
    """Return True while a recorded call is being made again, which listeners of the user's call pass over."""
    return _RESUMING.get()


def expanded(values: torch.Tensor, times: int) -> torch.Tensor:
    """Return rows repeated as a whole, as the pipeline repeats its batch."""
    return values.repeat(times, *[1] * (values.ndim - 1)) if times > 1 else values


@contextmanager
def _in_silence(pipeline: Any) -> Iterator[None]:
    """Silence progress bars, log lines and warnings, which the recorded call has given already."""
    from diffusers.utils.logging import get_verbosity, set_verbosity

    level = get_verbosity()
    vars(pipeline)["_progress_bar_config"] = {"disable": True}  # put back by `restored`
    set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_verbosity(level)


class _Running:
    """One resumed call while it runs: it answers what comes before the step, and listens from there on."""

    def __init__(self, resumption: Resumption, question: Question, answer: Answer):
        self.resumption, self.question, self.answer = resumption, question, answer
        self.position, self.ordinals, self.asked = 0, dict[str, int](), dict[str, int]()
        self.repeated = resumption.repeated
        self.end = len(resumption.steps) if question.place is None else question.place
        first = question.before if question.before is not None else question.place
        self.samples = expanded(question.samples, resumption.steps[first or 0].copies)
        self.start = (first or 0) + (question.before is not None)

    def listen(self, undo: ExitStack) -> None:
        """Take the place of the networks' calls, the schedulers' steps and the first samples' functions."""
        pipeline = self.resumption.call.pipeline
        for name, module in self.resumption.modules.items():
            compiled = module._compiled_call_impl is not None
            own_call = (
                "_compiled_call_impl" if compiled else "_call_impl"
            )  # beneath `forward`, so users' hooks see no zeros
            undo.enter_context(replaced_method(module, own_call, self._forward(name, module)))
            for method in ("encode", "decode"):
                if hasattr(module, method):
                    undo.enter_context(replaced_method(module, method, self._method(f"{name}.{method}")))
        for scheduler in {id(value): value for value in self.resumption.schedulers.values()}.values():
            undo.enter_context(replaced_method(scheduler, "step", self._stepping()))
        for name in dir(type(pipeline)):
            if name.startswith(PREPARES):
                undo.enter_context(replaced_method(pipeline, name, self._first(name)))
        for home in {sys.modules[kind.__module__] for kind in type(pipeline).__mro__ if kind is not object}:
            if NOISE in vars(home):
                undo.enter_context(replaced_method(home, NOISE, self._first(NOISE)))
        if self.question.place is None and not self.question.judged:
            vars(pipeline).update({name: None for name in NO_JUDGES if name in vars(pipeline)})

    def callback(self, own: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return the user's callback, or none, with the samples entering behind the step before."""

        def called(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            values = dict(own(pipeline, index, timestep, tensors) or {}) if own is not None else {}
            if self.question.before is not None and self.position == self.question.before + 1:
                values["latents"] = self.samples
            return values

        return called

    def _forward(self, name: str, module: torch.nn.Module) -> Callable[..., Any]:
        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            early = self.position < self.start
            if self.question.inputs_only and (name in self.repeated or name in self.resumption.denoisers):
                if not early and name in self.resumption.denoisers:
                    taken, named = map_tensors(lambda tensor: tensor.detach(), (args, kwargs))
                    self.answer.calls.append(ModuleCall(name, module, taken, named, None))
                return self._blank(name)
            if early and name in self.repeated and not self.question.computed:
                return self._blank(name)
            if name not in self.repeated and name not in self.resumption.denoisers:
                return self._remembered(name, original, args, kwargs)
            if early:
                return original(*args, **kwargs)
            taken, named = map_tensors(lambda tensor: tensor.detach(), (args, kwargs))
            output = original(*args, **kwargs)
            self.answer.calls.append(ModuleCall(name, module, taken, named, output))
            return output

        return forward

    def _blank(self, name: str) -> Any:
        """Return zeros of the shapes that this call of a network gave when it was recorded."""
        key = f"{self.position}.{name}"
        number = self.asked.get(key, 0)
        self.asked[key] = number + 1
        blanks = [blank for other, blank in self.resumption.steps[self.position].blanks if other == name]
        if number >= len(blanks):
            raise ReplayError("The pipeline, called again, calls its networks in another order than before.")
        return filled(blanks[number], self.question.count)

    def _method(self, name: str) -> Callable[..., Any]:
        def method(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if name.endswith("decode") and self.position >= self.end:
                return original(*args, **kwargs)
            return self._remembered(name, original, args, kwargs)

        return method

    def _remembered(self, name: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what a network gave for these very arguments in an earlier resumed call, or compute it."""
        number = self.ordinals.get(name, 0)
        self.ordinals[name] = number + 1
        memory, key = self.resumption.memory, (name, number)
        show = self.question.on_network
        if show is not None:
            return show(name, number, args, kwargs, self._shown(key, original, args, kwargs))
        if key in memory and same_tree(memory[key][0], (args, kwargs)):
            return copied(memory[key][1])
        if _needs_gradient((args, kwargs)):
            return original(*args, **kwargs)
        with torch.no_grad():
            output = original(*args, **kwargs)
        memory[key] = (map_tensors(lambda tensor: tensor.clone(), (args, kwargs)), copied(output))
        return output

    def _shown(self, key: tuple[str, int], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what a network gives, from memory where these very arguments are; only first outputs are stored."""
        memory = self.resumption.memory
        if key[0] in self.question.fresh:
            return original(*args, **kwargs)
        if key in memory and same_tree(memory[key][0], (args, kwargs)):
            return copied(memory[key][1])
        output = original(*args, **kwargs)
        if key not in memory and not self.question.gradient:
            memory[key] = (map_tensors(lambda tensor: tensor.clone(), (args, kwargs)), copied(output))
        return output

    def _stepping(self) -> Callable[..., Any]:
        """Return the step as a function, which is still this call's own if the pipeline copies its scheduler."""
        return lambda original, *args, **kwargs: self._step(original, *args, **kwargs)

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = StepArguments.of(original, args, kwargs)
        if arguments is None:  # a step that was not recorded either
            return original(*args, **kwargs)
        position, question = self.position, self.question
        if position == question.place:
            self.answer.prediction, self.answer.arrived = arguments.model_output, arguments.sample
            raise Reached
        if position >= len(self.resumption.steps):
            raise ReplayError("The pipeline, called again, takes more steps than before.")
        recorded = self.resumption.recorded(position)
        self.position += 1
        if position >= self.start and recorded.beside:
            return original(*args, **kwargs)
        known = {name: self._all(getattr(recorded, name), recorded) for name in ("model_output", "sample")}
        with torch.no_grad():
            result = original(*arguments.with_values(known)[0], **arguments.with_values(known)[1])
        enters = position == question.before and question.entry.kind == "step"
        return _with_sample(result, self.samples if enters else self._all(recorded.prev_sample, recorded))

    def _all(self, values: torch.Tensor, recorded: RecordedStep) -> torch.Tensor:
        return expanded(values, self.question.count * recorded.copies)

    def _first(self, kind: str) -> Callable[..., Any]:
        """Return the function that hears first samples, and hands on others where they are to enter."""

        def first(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            number = self.ordinals.get(kind, 0)
            self.ordinals[kind] = number + 1
            entry = self.question.entry
            if self.question.before is None and (entry.kind, entry.ordinal) == (kind, number):
                self.start = self.position  # steps beside the sampling depend on these samples too, as Cosmos' do
                samples = self.samples if entry.repeated else self.question.samples
                if entry.by_frames:
                    rows = rows_at(output, entry.path)
                    samples = samples.reshape(rows, -1, *samples.shape[1:]).movedim(1, 2)
                return _replaced(output, entry.path, samples / entry.factor)
            self.answer.firsts += [(kind, number, path, tensor) for path, tensor in _paths(output)]
            return output

        return first


def _needs_gradient(tree: Any) -> bool:
    needing: list[bool] = []
    map_tensors(lambda tensor: needing.append(tensor.requires_grad), tree)
    return any(needing)


def _with_sample(result: Any, sample: torch.Tensor) -> Any:
    """Return what `scheduler.step` returned with another next sample in it.

    Tensors beside it that are the next sample too follow: consistency models end in both, and decode the second.
    """
    own = sample_of_result(result)
    sample = sample.to(own.dtype)

    def other(value: Any) -> Any:
        same = isinstance(value, torch.Tensor) and value.shape == own.shape and torch.equal(value, own)
        return sample if same else value

    if isinstance(result, tuple):
        return (sample, *[other(value) for value in result[1:]])
    if isinstance(result, torch.Tensor):
        return sample
    result = copy.copy(result)
    for name, value in list(vars(result).items()):
        setattr(result, name, sample if name == "prev_sample" else other(value))
    return result


def _paths(output: Any, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """Return every tensor of nested tuples and lists with its path."""
    if isinstance(output, torch.Tensor):
        return [(path, output)]
    values = output if isinstance(output, (tuple, list)) else ()
    return [found for index, value in enumerate(values) for found in _paths(value, (*path, index))]


def rows_at(output: Any, path: tuple[int, ...]) -> int:
    """Return the number of rows of the tensor at a path of nested tuples and lists."""
    for index in path:
        output = output[index]
    return len(output)


def rows_by_frames(tensor: torch.Tensor) -> torch.Tensor:
    """Return (n, channels, frames, h, w) with a row for each frame, (n · frames, channels, h, w)."""
    return tensor.movedim(2, 1).flatten(0, 1)


def _replaced(output: Any, path: tuple[int, ...], tensor: torch.Tensor) -> Any:
    """Return nested tuples and lists with another tensor at a path."""
    if not path:
        return tensor.to(output.dtype)
    values = list(output)
    values[path[0]] = _replaced(values[path[0]], path[1:], tensor)
    return type(output)(values)
