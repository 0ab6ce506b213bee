"""The arguments of one call of a pipeline: checked before it runs, and its refusals in one paragraph."""

import difflib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from ..errors import DenoscopeError, InputError, RecordingError, did_you_mean, in_short
from .components import size_multiple
from .memory import refuse_too_large

ABOUT_SIZES = re.compile(r"\b(sizes?|shapes?|height|width|divisible|dimensions?)\b")
"""Words of a refusal that speaks of sizes."""
USUAL_STEPS = 50
"""Of pipelines that do not say."""
FORESEEN = (MemoryError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError, LookupError)
"""Exceptions of a pipeline that are passed on in one paragraph."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a pipeline, with positional and named arguments; raises `InputError` for impossible ones."""

    pipeline: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._check_names()
        self._check_steps()
        self._check_sizes()
        guidance = self.kwargs.get("guidance_scale")
        if guidance is not None and not math.isfinite(guidance):
            raise InputError(f"guidance_scale is {guidance}. Give a finite number; 1 is no guidance, 7.5 is usual.")
        if "prompt" in self.parameters and self.kwargs.get("prompt_embeds") is None:
            self._check_prompts()

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the pipeline's own call."""
        return inspect.signature(self.pipeline.__call__).parameters

    @property
    def prompt(self) -> Any:
        """The text or texts that are passed as `prompt`, by name or by position; None if there are none."""
        place = list(self.parameters).index("prompt") if "prompt" in self.parameters else 0
        return self.kwargs.get("prompt", self.args[place] if len(self.args) > place else None)

    @property
    def texts(self) -> list[str]:
        """The prompts, one or several."""
        texts = self.prompt if isinstance(self.prompt, (list, tuple)) else [self.prompt]
        return [text for text in texts if isinstance(text, str)]

    @property
    def steps(self) -> int:
        """The number of denoising steps that is asked for, the pipeline's own if none is."""
        return int(
            self.kwargs.get("num_inference_steps") or default_of(self.pipeline, "num_inference_steps") or USUAL_STEPS
        )

    @torch.no_grad()
    def run(self, kwargs: Mapping[str, Any], steps_done: Sequence[int]) -> Any:
        """Call the pipeline with these named arguments.

        Raises `InputError` for an exception before the first of `steps_done`, `RecordingError` for a later one.
        """
        try:
            with torch.inference_mode(False):
                return self.pipeline(*self.args, **kwargs)
        except DenoscopeError:
            raise
        except FORESEEN as error:
            self._refuse(error, kwargs, len(steps_done))

    def _refuse(self, error: Exception, kwargs: Mapping[str, Any], steps_done: int) -> NoReturn:
        plain = {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
        values = ", ".join(f"{key}={value!r}" for key, value in plain.items()) or "nothing"
        name, reason = type(self.pipeline).__name__, _reason(error)
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise RecordingError(
                f"The memory was not enough to make the picture: {in_short(error, 160)} Given: {values}. Make a "
                "smaller picture, load the model with dtype float16 on a GPU, or use a machine with more memory."
            ) from error
        if steps_done:
            raise RecordingError(
                f"{name} failed after {steps_done} of its steps: {reason} Given: {values}. The call itself was "
                "accepted. Make the same call without Denoscope to see where it fails."
            ) from error
        advice = "Use arguments that the pipeline takes on its own."
        if "height" in plain or "width" in plain or ABOUT_SIZES.search(str(error)):
            advice = f"{advice[:-1]}; sizes must be multiples of {size_multiple(self.pipeline)} pixels."
        raise InputError(f"{name} refused the call: {reason} Given: {values}. {advice}") from error

    def _check_names(self) -> None:
        parameters, name = self.parameters, type(self.pipeline).__name__
        catches_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        is_prompted = "prompt" in self.kwargs or (len(self.args) > 0 and isinstance(self.args[0], str))
        if "prompt" not in parameters and is_prompted and not catches_all:
            raise InputError(
                f"A prompt was given, and {name} takes none: this model makes pictures without text. "
                "Leave the prompt out, or load a text-to-image model."
            )
        for option in self.kwargs:
            slip = difflib.get_close_matches(option, parameters, n=1, cutoff=0.85)
            if option not in parameters and (slip or not catches_all):
                raise InputError(f'{name} has no option "{option}". {did_you_mean(option, parameters)}')

    def _check_steps(self) -> None:
        steps = self.kwargs.get("num_inference_steps")
        if steps is None:
            return
        if not isinstance(steps, int) or steps < 1:
            raise InputError(
                f"num_inference_steps is {steps!r}. A picture needs at least 1 denoising step; 20 to 50 are usual."
            )
        scheduler = self.pipeline.scheduler
        trained = training_steps(scheduler)
        if hasattr(scheduler, "alphas_cumprod") and steps > trained:
            raise InputError(
                f"num_inference_steps is {steps}. The model has no more steps than the time steps it was "
                f"trained on, {trained}; 20 to 50 are usual."
            )

    def _check_sizes(self) -> None:
        multiple = size_multiple(self.pipeline)
        sizes = {name: self.kwargs[name] for name in ("height", "width") if self.kwargs.get(name) is not None}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1 or size % multiple:
                raise InputError(
                    f"The model cannot make a picture with {name} {size!r}: sizes are positive multiples of "
                    f"{multiple} pixels. Leave height and width out for the size it was trained on."
                )
        pictures = self.kwargs.get("num_images_per_prompt") or 1
        if sizes and isinstance(pictures, int):
            height, width = sizes.get("height", multiple), sizes.get("width", multiple)
            refuse_too_large(self.pipeline, height, width, pictures * max(len(self.texts), 1), self.steps)

    def _check_prompts(self) -> None:
        prompt = self.prompt
        texts = [prompt] if isinstance(prompt, str) or prompt is None else prompt
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts) or not texts:
            problem = "No prompt was given" if prompt is None else f"The prompt is {prompt!r:.80}"
            raise InputError(
                f"{problem}, and {type(self.pipeline).__name__} makes pictures of a text, or of a list of texts. "
                'Say what the picture should show, such as "a red circle".'
            )


def _reason(error: Exception) -> str:
    """Return an exception's message as a sentence, with its class where the message alone says little."""
    reason = in_short(error, 400)
    return f"{type(error).__name__}, {reason}" if isinstance(error, (LookupError, AttributeError)) else reason


def default_of(pipeline: Any, name: str) -> Any:
    """Return the pipeline's own value for an argument that is left out; None if it has none."""
    parameter = inspect.signature(pipeline.__call__).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def training_steps(scheduler: Any) -> int:
    """Return the number of time steps that a scheduler's model was trained on, 1000 if it does not say."""
    return int(scheduler.config.get("num_train_timesteps", 1000))
