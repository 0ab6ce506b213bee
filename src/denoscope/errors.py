"""Everything Denoscope raises on purpose.

    DenoscopeError
    ├── InputError          the request cannot be met as it is (exit status 2)
    │   ├── ModelError          the model cannot be loaded, or lacks a part that the question needs
    │   └── ScheduleError       the time steps are impossible, or the scheduler cannot take them
    ├── ReplayError         a step replayed with its own sample differs from the recording
    ├── RecordingError      a run could not be recorded, or a second recording was started inside one
    ├── CaptureError        a layer or an attention of the network could not be listened to
    ├── NumericsError       NaN or infinity in a prediction; names the step
    ├── MemoryShortage      memory runs out even for one sample
    ├── OutputError         a result could not be written; nothing is left half-written
    └── Interrupted         Ctrl-C; `partial` holds the finished steps

Every message is one paragraph: what failed, what was given, what is allowed, what to do."""

import difflib
import textwrap
from collections.abc import Iterable
from typing import Any


class DenoscopeError(Exception):
    """The root of the tree."""


class InputError(DenoscopeError, ValueError):
    """The request cannot be met as it is."""


class ModelError(InputError):
    """The model cannot be loaded, or lacks a part that the question needs."""


class ScheduleError(InputError):
    """The time steps are impossible, or the scheduler cannot take them."""


class ReplayError(DenoscopeError):
    """A step replayed with its own sample differs from the recording."""


class RecordingError(DenoscopeError):
    """A run could not be recorded, or a second recording was started inside one."""


class CaptureError(DenoscopeError):
    """A layer or an attention of the network could not be listened to."""


class NumericsError(DenoscopeError):
    """NaN or infinity in a prediction."""


class MemoryShortage(DenoscopeError):
    """Memory runs out even for one sample."""


class OutputError(DenoscopeError):
    """A result could not be written."""


class Interrupted(DenoscopeError):
    """Stopped in the middle, by Ctrl-C or a failure; `partial` is the dataset of the steps finished, or None."""

    def __init__(self, message: str, partial: Any = None):
        super().__init__(message)
        self.partial = partial


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest of the allowed words and lists them.

    >>> did_you_mean("unifrom", ["uniform", "early"])
    'Did you mean "uniform"? Allowed: uniform, early.'
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Allowed: {', '.join(allowed)}."


def sentence(text: object) -> str:
    """Return a text on one line that ends like a sentence.

    >>> sentence("out of memory")
    'out of memory.'
    """
    words = " ".join(str(text).split())
    return words if words.endswith((".", "?", "!")) else f"{words}."


def shown_value(value: Any) -> str:
    """Return a value as Python writes it, short and on one line."""
    return one_line(repr(value), 100)


def one_line(text: object, most: int) -> str:
    """Return a text without line breaks, cut to at most so many characters.

    >>> one_line("far too long a text", 12)
    'far too  ...'
    """
    words = " ".join(str(text).split())
    return words if len(words) <= most else f"{words[: most - 4]} ..."


def in_short(error: BaseException, most: int = 300) -> str:
    """Return the message of an exception, or its class, as one sentence of one line.

    >>> in_short(KeyError("up"))
    "KeyError: 'up'."
    """
    message = f"KeyError: {error}" if type(error) is KeyError else str(error) or type(error).__name__
    return sentence(textwrap.shorten(message, most, placeholder=" ..."))
