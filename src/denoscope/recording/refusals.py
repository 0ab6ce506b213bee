"""The failure of a running pipeline in one paragraph, put down to the pipeline only if its own code failed."""

import functools
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any, NoReturn

import torch

from ..errors import InputError, RecordingError, in_short, shown_value

PACKAGE = str(Path(__file__).resolve().parent.parent)
"""The folder of Denoscope's own code."""
FORESEEN = (
    MemoryError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError, LookupError, AssertionError,
    OSError, ImportError, NameError, EOFError,
)  # fmt: skip
"""Exceptions of a pipeline that are passed on in one paragraph; others are a caller's own, from a callback."""
OF_SIZES = re.compile(r"\b(height|width|resolution)\b")
"""Words of a refusal that names the sizes of a picture."""
OF_PICTURE = re.compile(r"\b([Ii]mages?|PIL)\b")
"""Words of a refusal that names the picture to start from."""
OF_NO_STEPS = re.compile(r"\b(0 elements|steps is 0|out of (bounds|range)|size 0)\b")
"""Words of a failure that no step at all is the reason of."""
MULTIPLE = re.compile(r"(?:divisible by|multiples? of)\s+(\d+)")
"""The pixels that a refusal says sizes must be a multiple of."""


def refuse(error: Exception, pipeline: Any, kwargs: Mapping[str, Any], steps_done: int) -> NoReturn:
    """Raise the failure of a pipeline's call as one paragraph.

    `InputError` for an exception of the pipeline before its first step, `RecordingError` for a later one, for too
    little memory, and for an exception of Denoscope's own code.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    given, name, reason = _given(kwargs), type(pipeline).__name__, _reason(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        raise RecordingError(
            f"The memory was not enough to make the picture: {in_short(error, 160)} Given: {given}. Make a "
            "smaller picture, load the model with dtype float16 on a GPU, or use a machine with more memory."
        ) from error
    place = own_place(error, pipeline)
    if place is not None:
        raise RecordingError(
            f"Denoscope failed while it recorded {name}, at {place}: {type(error).__name__}, {in_short(error, 300)} "
            f"Given: {given}. The pipeline did not refuse the call, and runs without Denoscope. This is a mistake in "
            "Denoscope: please report it with this line."
        ) from error
    if steps_done:
        raise RecordingError(
            f"{name} failed after {steps_done} of its steps: {reason} Given: {given}. The call itself was "
            "accepted. Make the same call without Denoscope to see where it fails."
        ) from error
    if kwargs.get("prompt") is None and kwargs.get("prompt_embeds") is None and "prompt" in str(error):
        raise InputError(
            f"No prompt was given, and {name} refused the call without one: {reason} Given: {given}. Say what the "
            'picture should show, such as "a red circle".'
        ) from error
    raise InputError(
        f"{name} refused the call: {reason} Given: {given}. {_advice(error, kwargs, parameters)}"
    ) from error


def _given(kwargs: Mapping[str, Any]) -> str:
    """Return the plain arguments of a call as a text."""
    plain = {key: value for key, value in kwargs.items() if isinstance(value, (int, float, str))}
    return ", ".join(f"{key}={shown_value(value)}" for key, value in plain.items()) or "nothing"


def _reason(error: Exception) -> str:
    """Return an exception's message as a sentence, with its class where the message alone says little."""
    reason = in_short(error, 400)
    says_little = isinstance(error, (LookupError, AttributeError, ArithmeticError, AssertionError, NameError))
    return f"{type(error).__name__}, {reason}" if says_little else reason


def _advice(error: Exception, kwargs: Mapping[str, Any], parameters: Collection[str]) -> str:
    """Return a sentence on the arguments that the refusal is about."""
    reason, advice = str(error), "Use arguments that the pipeline takes on its own"
    left, multiple = _steps_left(kwargs), MULTIPLE.search(reason)
    if left is not None and left < 1 and OF_NO_STEPS.search(reason):
        return (
            f"A strength of {kwargs['strength']:g} leaves {left:g} of {kwargs['num_inference_steps']} steps, and at "
            "least 1 is needed: give more steps, or a larger strength."
        )
    if OF_SIZES.search(reason) and multiple:
        return f"{advice}; sizes must be multiples of {multiple[1]} pixels."
    if OF_PICTURE.search(reason) and kwargs.get("image") is None and "image" in parameters:
        return f"{advice}; no image was given."
    return f"{advice}."


def _steps_left(kwargs: Mapping[str, Any]) -> float | None:
    """Return the number of steps that a strength leaves of those asked for; None if one of both is not given."""
    steps, strength = kwargs.get("num_inference_steps"), kwargs.get("strength")
    return steps * strength if isinstance(steps, int) and isinstance(strength, (int, float)) else None


# Whose failure it is.


def own_place(error: BaseException, pipeline: Any) -> str | None:
    """Return the file and line of Denoscope's code that an exception comes from; None if it is the pipeline's.

    The innermost frame of Denoscope decides, unless it only hands on a call of the pipeline: `scheduler.step` runs
    inside a listener, and its failure is the pipeline's.
    """
    frames = list(_frames(error.__traceback__))
    inner = [place for place, (frame, _) in enumerate(frames) if _is_own(frame.f_code)][1:]  # the first one is `run`
    if not inner:
        return None
    frame, line = frames[inner[-1]]
    following = frames[inner[-1] + 1 :]
    if following and _hands_on(frame, following[0][0].f_code, pipeline):
        return None
    return f"{Path(frame.f_code.co_filename).resolve().relative_to(PACKAGE)}, line {line}"


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_own(code: CodeType) -> bool:
    return Path(code.co_filename).resolve().is_relative_to(PACKAGE)


def _hands_on(frame: FrameType, code: CodeType, pipeline: Any) -> bool:
    """Return True if the code that runs inside a frame is a method of the pipeline's own parts, held by the frame."""
    held = list(frame.f_locals.values())
    held += [inner for value in held if _is_of_package(value) for inner in vars(value).values()]
    for value in held:
        function, owners = getattr(value, "__func__", None), (getattr(value, "__self__", None),)
        if isinstance(value, functools.partial):  # as accelerate replaces the forward of a module
            function, owners = value.func, value.args
        elif isinstance(value, FunctionType):  # as users replace a method of a part
            function, owners = value, _holders(value, pipeline)
        if getattr(function, "__code__", None) is code and any(_is_part(owner, pipeline) for owner in owners):
            return True
    return False


def _holders(function: FunctionType, pipeline: Any) -> tuple[Any, ...]:
    """Return the parts that have a function as an attribute of their own, or had it before they were listened to."""
    parts = [part for part in (pipeline, *vars(pipeline).values()) if hasattr(part, "__dict__")]
    return tuple(
        part
        for part in parts
        if any(function is value or function is getattr(value, "__wrapped__", None) for value in vars(part).values())
    )


def _is_of_package(value: Any) -> bool:
    """Return True for an object of Denoscope that has attributes."""
    return type(value).__module__.startswith("denoscope.") and hasattr(value, "__dict__")


def _is_part(owner: Any, pipeline: Any) -> bool:
    """Return True for the pipeline, for a part of it, and for a module inside a part."""
    parts = [pipeline, *vars(pipeline).values()]
    if any(owner is part for part in parts):
        return True
    networks = [part for part in parts if isinstance(part, torch.nn.Module)]
    return any(owner is module for network in networks for module in network.modules())
