"""Everything Denoscope raises on purpose.

    DenoscopeError
    ├── InputError          what was asked for cannot be done as asked (exit status 2)
    │   ├── ModelError          the model cannot be loaded, or lacks what the question needs
    │   └── ScheduleError       the time steps, or a scheduler that cannot take them
    ├── ReplayError         a step replayed with its own sample differs from what was recorded
    ├── RecordingError      a run could not be recorded, or a second recording was started inside one
    ├── NumericsError       NaN or infinity in a prediction; names the step
    ├── OutputError         a result could not be written; nothing is left half-written
    └── Interrupted         Ctrl-C; `partial` holds what was finished

Every message is one paragraph: what failed, what was given, what is allowed, what to do.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class DenoscopeError(Exception):
    """The root of the tree."""


class InputError(DenoscopeError, ValueError):
    """What was asked for cannot be done as asked."""


class ModelError(InputError):
    """The model cannot be loaded, or lacks what the question needs."""


class ScheduleError(InputError):
    """The time steps are impossible, or the scheduler cannot take them."""


class ReplayError(DenoscopeError):
    """A step replayed with its own sample differs from what was recorded."""


class RecordingError(DenoscopeError):
    """A run could not be recorded, or a second recording was started inside one."""


class NumericsError(DenoscopeError):
    """NaN or infinity in a prediction."""


class OutputError(DenoscopeError):
    """A result could not be written."""


class Interrupted(DenoscopeError):
    """Ctrl-C in the middle; `partial` is the dataset of the steps that were finished, or None."""

    def __init__(self, message: str, partial: Any = None):
        super().__init__(message)
        self.partial = partial


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A sentence that suggests the nearest of the allowed words and lists them.

    >>> did_you_mean("unifrom", ["uniform", "early"])
    'Did you mean "uniform"? Allowed: uniform, early.'
    """
    allowed = list(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Allowed: {', '.join(allowed)}."
