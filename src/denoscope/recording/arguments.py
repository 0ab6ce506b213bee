"""The arguments of one call of a pipeline, checked before it runs."""

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, SupportsIndex

import torch

from ..errors import DenoscopeError, InputError, did_you_mean
from .components import scheduler_of, size_multiple
from .memory import refuse_too_large
from .refusals import FORESEEN, refuse

USUAL_SCHEDULE = "uniform"
USUAL_STEPS = 50
"""Of pipelines that do not say."""
OF_PICTURES = ("image", "mask_image", "control_image", "strength")
"""Arguments that change the whole run, so a pipeline of diffusers must not let them pass by unread."""
OF_TRACE = {
    "seed": "generator=torch.Generator().manual_seed({value!r})",
    "shift": "schedule=, a list of time steps, such as denoscope.recording.schedules.early(30, {value!r})",
    "schedule": "timesteps= of the pipeline, if it takes them",
    "scheduler": "pipe.scheduler, set before the model is loaded",
    "keep": "trace.to({value!r}) of the finished trace",
}
"""Words that `Model.trace` reads itself, and another way to say each."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a pipeline, with positional and named arguments; raises `InputError` for impossible ones."""

    pipeline: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._check_positions()
        self._check_names()
        if "prompt" in self.parameters and self.named.get("prompt_embeds") is None:
            self._check_prompts()
        self._check_steps()
        self._check_sizes()
        guidance = self.named.get("guidance_scale")
        if isinstance(guidance, (int, float)) and not math.isfinite(guidance):
            raise InputError(f"guidance_scale is {guidance}. Give a finite number; 1 is no guidance, 7.5 is usual.")

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the pipeline's own call."""
        return parameters_of(self.pipeline)

    @property
    def positional(self) -> tuple[Any, ...]:
        """The arguments that stay without a name: the prompt if it comes first, or all for a call that takes any."""
        if _takes_any(self.parameters) or next(iter(self.parameters), None) == "prompt":
            return self.args if _takes_any(self.parameters) else self.args[:1]
        return ()

    @property
    def named(self) -> dict[str, Any]:
        """All other arguments by the names that the pipeline's call has for them."""
        rest = list(self.parameters)[len(self.positional) :]
        return dict(zip(rest, self.args[len(self.positional) :], strict=False)) | dict(self.kwargs)

    @property
    def prompt(self) -> Any:
        """The text or texts that are passed as `prompt`, by name or by position; None if there are none."""
        return self.named.get("prompt", self.positional[0] if self.positional else None)

    @property
    def texts(self) -> list[str]:
        """The prompts, one or several."""
        texts = self.prompt if isinstance(self.prompt, (list, tuple)) else [self.prompt]
        return [text for text in texts if isinstance(text, str)]

    @property
    def steps(self) -> int:
        """The number of denoising steps that is asked for, the pipeline's own if none is."""
        return int(
            self.named.get("num_inference_steps") or default_of(self.pipeline, "num_inference_steps") or USUAL_STEPS
        )

    @torch.no_grad()
    def run(self, kwargs: Mapping[str, Any], steps_done: Sequence[int]) -> Any:
        """Call the pipeline with these named arguments.

        Raises `InputError` for an exception of the pipeline before the first of `steps_done`, `RecordingError` for a
        later one and for one of Denoscope's own.
        """
        try:
            with torch.inference_mode(False):
                return self.pipeline(*self.positional, **kwargs)
        except DenoscopeError:
            raise
        except FORESEEN as error:
            refuse(error, self.pipeline, {"prompt": self.prompt, **kwargs}, len(steps_done))

    def refuse_shared_words(self, words: Mapping[str, Any]) -> None:
        """Raise `InputError` for a word of `Model.trace` that says what another argument says, or may.

        That is a seed beside a generator or without one to set, and a word that this pipeline has an argument of its
        own for. None is no word, and neither is the usual schedule.
        """
        name = type(self.pipeline).__name__
        said = {word: value for word, value in words.items() if not _is_usual(value)}
        if "seed" in said and self.named.get("generator") is not None:
            raise InputError("Both seed and generator were given. They say the same thing: give one of them.")
        if "seed" in said and not takes(self.pipeline, "generator"):
            raise InputError(f"seed is {said['seed']!r}, and {name} takes no generator. Leave the seed out.")
        for word, value in said.items():
            if word in self.parameters:
                raise InputError(
                    f"{word}={value!r} was given, and {name} has an argument {word} of its own, so either may be "
                    f"meant. The recording's own can be said as {OF_TRACE[word].format(value=value)}. For the "
                    f"pipeline's: class Own({name}): __call__ = functools.partialmethod({name}.__call__, "
                    f"{word}={value!r}), and denoscope.load(Own(**pipe.components))."
                )

    def _check_positions(self) -> None:
        if _takes_any(self.parameters):
            return
        name, places = type(self.pipeline).__name__, positions_of(self.parameters)
        if len(self.args) > len(places):
            raise InputError(
                f"{len(self.args)} arguments were given by position, and {name} takes {len(places)}: "
                f"{', '.join(places)}. Give the others by name."
            )
        twice = [place for place, _ in zip(places, self.args, strict=False) if place in self.kwargs]
        if twice:
            raise InputError(
                f"{twice[0]} was given twice, by position and by name. By position {name} takes, in this order: "
                f"{', '.join(places[: len(self.args)])}. Give each argument once."
            )

    def _check_names(self) -> None:
        parameters, name = self.parameters, type(self.pipeline).__name__
        catches_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if "prompt" not in parameters and self._is_prompted() and not catches_all:
            raise InputError(
                f"A prompt was given, and {name} takes none: this model makes pictures without text. "
                "Leave the prompt out, or load a text-to-image model."
            )
        for option in self.kwargs:
            slip = difflib.get_close_matches(option, parameters, n=1, cutoff=0.85)
            unread = option in OF_PICTURES and not takes(self.pipeline, option)
            if option not in parameters and (slip or unread or not catches_all):
                raise InputError(f'{name} has no option "{option}". {did_you_mean(option, named_in(parameters))}')

    def _is_prompted(self) -> bool:
        """Return True if a text is given as the prompt, by name or as the first argument."""
        first = next(iter(self.parameters), "")
        by_position = len(self.args) > 0 and isinstance(self.args[0], str) and "prompt" not in first
        return "prompt" in self.kwargs or by_position

    def _check_steps(self) -> None:
        steps = self.named.get("num_inference_steps")
        if steps is None:
            return
        if not is_whole(steps) or steps < 1:
            raise InputError(
                f"num_inference_steps is {steps!r}. A picture needs at least 1 denoising step; 20 to 50 are usual."
            )
        scheduler = scheduler_of(self.pipeline)
        trained = training_steps(scheduler)
        if hasattr(scheduler, "alphas_cumprod") and steps > trained:
            raise InputError(
                f"num_inference_steps is {steps}. The model has no more steps than the time steps it was "
                f"trained on, {trained}; 20 to 50 are usual."
            )

    def _check_sizes(self) -> None:
        multiple, named = size_multiple(self.pipeline), self.named
        sizes = {name: named[name] for name in ("height", "width") if named.get(name) is not None}
        for name, size in sizes.items():
            if not is_whole(size) or size < 1 or size % multiple:
                raise InputError(
                    f"The model cannot make a picture with {name} {size!r}: sizes are positive multiples of "
                    f"{multiple} pixels. Leave height and width out for the size it was trained on."
                )
        pictures = named.get("num_images_per_prompt") or 1
        if sizes and isinstance(pictures, int):
            height, width = sizes.get("height", multiple), sizes.get("width", multiple)
            refuse_too_large(self.pipeline, height, width, pictures * max(len(self.texts), 1), self.steps)

    def _check_prompts(self) -> None:
        """Raise `InputError` for a prompt that is no text; a missing one only where the call must have it."""
        prompt, name = self.prompt, type(self.pipeline).__name__
        if prompt is None and self.parameters["prompt"].default is not inspect.Parameter.empty:
            return  # the pipeline knows better: some make a picture of another picture alone
        if not _is_text(prompt):
            problem = "No prompt was given" if prompt is None else f"The prompt is {prompt!r:.80}"
            raise InputError(
                f"{problem}, and {name} makes pictures of a text, or of a list of texts. "
                f'Say what the picture should show, such as "a red circle".{self._order(prompt)}'
            )

    def _order(self, prompt: Any) -> str:
        """Return the order of the arguments, if something else stands by position where the prompt belongs."""
        by_position = any(prompt is each for each in self.args)
        places = positions_of(self.parameters)[:4]
        return f" By position {type(self.pipeline).__name__} takes {', '.join(places)}." if by_position else ""


def _is_usual(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == USUAL_SCHEDULE)


def _is_text(prompt: Any) -> bool:
    """Return True for a text, and for a list or a mapping that holds texts and nothing else."""
    if isinstance(prompt, Mapping):
        prompt = list(prompt.values())
    if isinstance(prompt, (list, tuple)):
        return len(prompt) > 0 and all(map(_is_text, prompt))
    return isinstance(prompt, str)


def is_whole(value: Any) -> bool:
    """Return True for a whole number of Python or NumPy."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and operator.index(value) == value


def parameters_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call by their names."""
    function = getattr(pipeline.__call__, "__func__", None)
    return inspect.signature(pipeline.__call__).parameters if function is None else _bound_parameters(function)


@functools.lru_cache(maxsize=64)
def _bound_parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a method behind its first one, `self`; reading them takes longer than a small step."""
    _first, *others = inspect.signature(function).parameters.items()
    return MappingProxyType(dict(others))


def positions_of(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the names of the arguments that can be given by position, in their order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def named_in(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the arguments that have a name, without `*args` and `**kwargs`."""
    return [name for name, parameter in parameters.items() if parameter.kind not in ANY]


ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return True if a call takes any arguments by position, as a wrapper around another call does."""
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())


def takes(pipeline: Any, name: str) -> bool:
    """Return True if a pipeline's call reads an argument of this name.

    The `**kwargs` of diffusers' own calls are for old names and pass others by; those of a caller's class may be read.
    """
    call, parameters = inspect.unwrap(pipeline.__call__), parameters_of(pipeline)
    if name in named_in(parameters):
        return True
    catches_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return catches_all and not str(getattr(call, "__module__", "")).startswith("diffusers.")


def refuse_untaken(pipeline: Any, names: Iterable[str]) -> None:
    """Raise `InputError` for the name of an argument that a pipeline's call does not read."""
    for name in names:
        if not takes(pipeline, name):
            allowed = named_in(parameters_of(pipeline))
            raise InputError(f'{type(pipeline).__name__} has no option "{name}". {did_you_mean(name, allowed)}')


def default_of(pipeline: Any, name: str) -> Any:
    """Return the pipeline's own value for an argument that is left out; None if it has none."""
    parameter = parameters_of(pipeline).get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def training_steps(scheduler: Any) -> int:
    """Return the number of time steps that a scheduler's model was trained on, 1000 if it does not say."""
    return int(scheduler.config.get("num_train_timesteps", 1000))
