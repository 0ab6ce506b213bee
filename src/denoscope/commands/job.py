"""One shape for all jobs: settings with `run(watch)`, and a result with `rows()`, `save(folder)` and `failures`.

    Request      -> Explanation      denoscope.explain
    Study        -> Recognition      denoscope.recognise
    Comparison   -> Variants         denoscope.compare
    Evaluation   -> EvaluationResult      denoscope.evaluate

Settings are frozen dataclasses in modules that load no torch. The work is a function in a module that does."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import InputError
from ..results.tables import Table

Watch = Callable[[str, int], Callable[[int], None]]
"""Takes a title and an amount of work (0 if unknown), and returns a function that takes the amount just done."""

At = tuple[int, ...] | Literal["all"] | None
"""The steps to explain: these, all, or None for the method's own choice."""

LARGEST_SEED = 2**64 - 1
FEWEST_MASKS = 4


class Result(Protocol):
    """The result of a job."""

    @property
    def failures(self) -> Mapping[str, str]:
        """Messages by the name of the part that failed; the other parts were finished."""

    @property
    def interrupted(self) -> bool:
        """True if the work was stopped before it was finished."""

    @property
    def interruption(self) -> str | None:
        """The reason why the work stopped early; None if it did not."""

    def rows(self) -> Table:
        """Return the short table that a terminal prints."""

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the output folder and return its absolute path."""


class Job(Protocol):
    """The settings of a job."""

    def check(self) -> None:
        """Raise `InputError` for a model or a file that is not there; loads nothing."""

    def run(self, watch: Watch | None = None) -> Result:
        """Do the work; `watch` is told of each part of it."""


def worker(command: str) -> Callable[..., Any]:
    """Return the function that does a job's work: importing its module loads torch, so it is imported when needed."""
    work: Callable[..., Any] = getattr(import_module(f".{command}", __package__), command)
    return work


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings by their names as words of a command line; a setting that is None or False is left out.

    >>> flags({"map_draws": 2, "at": (1, 3), "shift": None, "special_tokens": True})
    ['--map-draws', '2', '--at', '1,3', '--special-tokens']
    """
    words = []
    for name, value in settings.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(_word(value))
    return words


def flag_each(name: str, values: Sequence[str]) -> list[str]:
    """Return an option that is repeated for each of its values.

    >>> flag_each("label", ("a cat", "a dog"))
    ['--label', 'a cat', '--label', 'a dog']
    """
    words = []
    for value in values:
        words += [f"--{name}", value]
    return words


def written_texts(texts: Sequence[str] | None) -> str | None:
    """Return texts as a command line has them, with semicolons between them; None if there are none.

    >>> written_texts(("red circle", "blue square")), written_texts(("red, or blue",))
    ('red circle; blue square', 'red, or blue;')
    """
    if texts is None:
        return None
    joined = "; ".join(texts)
    return f"{joined};" if "," in joined and ";" not in joined else joined


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that no generator takes."""
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed is {seed}. Give a whole number from 0 to {LARGEST_SEED}.")


def check_workers(workers: int | None) -> None:
    """Raise `InputError` for fewer than one worker; None is one worker per CPU."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}. Give at least 1; the default is one per CPU.")


def check_steps(at: At) -> None:
    """Raise `InputError` for steps that are wrong in any run."""
    if at is None or at == "all":
        return
    steps = ",".join(map(str, at))
    if any(index < 0 for index in at):
        raise InputError(f"The steps {steps} cannot be explained: they count from 0, the noisiest.")
    if not at or len(set(at)) < len(at):
        raise InputError(f"The steps given are: {steps or 'none'}. Give at least one, and each once.")


def check_once(kind: str, values: Sequence[Any], least: int) -> None:
    """Raise `InputError` unless there are at least so many values and all of them differ."""
    repeated = any(value in values[:i] for i, value in enumerate(values))
    if repeated or len(values) < least:
        given = ", ".join(map(str, values)) or "none"
        raise InputError(
            f"The {kind} given are: {given}. A comparison needs at least {least} that differ, and each once."
        )


def shown_steps(at: At, total: int, default: Sequence[int]) -> Sequence[int]:
    """Return the steps to explain in a run of `total` steps, `default` if none are named.

    Raises `InputError` for a step that the run does not have.
    """
    if at is None:
        return default
    if at == "all":
        return range(total)
    if max(at) >= total:
        raise InputError(
            f"Step {max(at)} cannot be explained: this run has {total} steps, 0 (the noisiest) to {total - 1}. Name "
            "steps among these, or ask for more of them."
        )
    return at


def fitting(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that a registered method has, or all options for an unknown method."""
    from ..attributors.base import METHODS, list_methods

    if name not in list_methods():
        return dict(options)
    parameters = inspect.signature(METHODS[name]).parameters
    return {option: value for option, value in options.items() if option in parameters}
