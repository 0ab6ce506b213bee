"""What all attributors share: choosing steps, looping, progress, labelling, keeping what was finished."""

import dataclasses
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..errors import DenoscopeError, InputError, Interrupted, did_you_mean, sentence
from ..recording.traces import Step, Trace
from ..vision.frames import Frame, Frames

Advance = Callable[[int], None]
DIMS = {1: ("step",), 2: ("step", "draw"), 3: ("step", "y", "x"), 4: ("step", "draw", "y", "x")}
"""What a result's axes are called, by their number, the steps' first; only frames have draws."""

Found = Mapping[str, np.ndarray | float | xr.DataArray]
"""What is found of a step: maps and numbers, whose axes `DIMS` names, and arrays that name theirs and label them."""

METHODS: dict[str, Callable[..., "Attributor"]] = {}


def register(name: str) -> Callable[[Callable[..., "Attributor"]], Callable[..., "Attributor"]]:
    """Decorator: make an attributor class, or a function that returns one, known by a name."""

    def enter(factory: Callable[..., "Attributor"]) -> Callable[..., "Attributor"]:
        METHODS[name] = factory
        return factory

    return enter


def list_methods() -> list[str]:
    """The names that `method` and `denoscope explain --methods` take."""
    return sorted(METHODS)


def method(name: str, **options: Any) -> "Attributor":
    """The attributor of a name, with its options.

    Raises `InputError` for an unknown name, with the nearest known one.
    """
    known = list_methods()
    if name not in known:
        raise InputError(f'There is no method "{name}". {did_you_mean(name, known)}')
    return METHODS[name](**options)


class Attributor(ABC):
    """`attributor(sequence, steps=None) -> xarray.Dataset`: `saliency` (step, y, x) and what else the method has.

    The sequence is a trace, or frames for a method that reads pictures; then there is a dim `draw` behind `step`.

    A subclass is a frozen dataclass of options and has one method, `explain`. `title`, `reading` (how to read the map)
    and `signed` (whether its sign means something) go into the result's attributes.
    """

    title: str = ""
    reading: str = ""
    signed: bool = False

    @abstractmethod
    def explain(self, step: Any, advance: Advance) -> Found:
        """Explain one step: `saliency` (y, x), other maps (y, x) and numbers; tell `advance` the work done.

        What has dims of its own, a layer or a word, is an `xarray.DataArray` that names them and brings their
        coordinates, the same at every step; `step` goes before them.
        """

    def options(self) -> dict[str, Any]:
        """How it is set, as plain values: what a result keeps."""
        return options_of(self)

    def work(self, step: Any) -> int:
        """How many units `explain` will advance by, for the progress bar."""
        return 1

    def groups(self, steps: Sequence[Any]) -> list[Sequence[Any]]:
        """The steps in the portions that `explain_group` is given, one step each unless a method gains from more."""
        return [[step] for step in steps]

    def explain_group(self, steps: Sequence[Any], advance: Advance) -> list[Found]:
        """What `explain` says of each of these steps."""
        return [self.explain(step, advance) for step in steps]

    def __call__(
        self,
        sequence: Trace | Frames,
        steps: Sequence[int] | None = None,
        *,
        show_progress: bool = False,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Explain the chosen steps (all by default) of a trace.

        Raises `InputError` for steps that are not there or a trace of several pictures, and `Interrupted`, with the
        finished steps in its `partial`, on Ctrl-C or when a later step fails; what the first one raises is raised.
        """
        chosen = choose(sequence, steps)
        if show_progress:
            return self._with_bar(sequence, chosen)
        advance = advance or (lambda done: None)
        results: list[Found] = []
        try:
            for group in self.groups(chosen):
                results += self.explain_group(group, advance)
        except (KeyboardInterrupt, DenoscopeError, RuntimeError) as stop:  # RuntimeError: out of memory
            if not results and not isinstance(stop, KeyboardInterrupt):
                raise
            partial = self._labelled(chosen[: len(results)], results) if results else None
            why = "Interrupted:" if isinstance(stop, KeyboardInterrupt) else f"{sentence(stop)} Because of that,"
            message = f"{why} {len(results)} of {len(chosen)} steps of {self.title} were finished and are kept."
            raise Interrupted(message, partial) from stop
        return self._labelled(chosen, results)

    def _with_bar(self, sequence: Trace | Frames, chosen: Sequence[Step | Frame]) -> xr.Dataset:
        from rich.progress import Progress

        with Progress() as progress:
            task = progress.add_task(self.title, total=sum(self.work(step) for step in chosen))
            return self(sequence, [s.index for s in chosen], advance=lambda done: progress.advance(task, done))

    def _labelled(self, steps: Sequence[Step | Frame], results: Sequence[Found]) -> xr.Dataset:
        coords = {
            "step": [step.index for step in steps],
            "timestep": ("step", [step.timestep for step in steps]),
            "log_snr": ("step", [step.log_snr for step in steps]),
        }
        variables = {name: stacked([result[name] for result in results]) for name in results[0]}
        attrs = {"title": self.title, "reading": self.reading, "signed": self.signed, **self.options()}
        return xr.Dataset(variables, coords=coords, attrs=attrs)


def stacked(values: Sequence[np.ndarray | float | xr.DataArray]) -> xr.DataArray:
    """One value of each step along `step`, in front.

    >>> stacked([xr.DataArray([1.0, 2.0], {"word": ["red", "circle"]})] * 3).dims
    ('step', 'word')
    """
    named = [value for value in values if isinstance(value, xr.DataArray)]
    if named:
        return xr.concat(named, "step", coords="minimal", compat="override", join="exact")
    array = np.stack([np.asarray(value) for value in values])
    return xr.DataArray(array, dims=DIMS[array.ndim])


def choose(sequence: Trace | Frames, steps: Sequence[int] | None) -> list[Any]:
    """The steps of a trace, or the frames, by their indices; all of them for None.

    Raises `InputError` for an index that is not there, one given twice, or a trace of several pictures.
    """
    if isinstance(sequence, Trace) and sequence.pictures != 1:
        raise InputError(
            f"This trace holds {sequence.pictures} pictures, and an explanation is of one. "
            "Choose it: attributor(trace.picture(0))."
        )
    if steps is None:
        return list(sequence)
    try:
        indices = [operator.index(index) for index in steps]
    except TypeError:
        raise InputError(f"The steps {steps!r} cannot be explained. Give whole numbers, such as [0, 8, 16].") from None
    wrong = [index for index in indices if not 0 <= index < len(sequence)]
    if wrong or len(set(indices)) < len(indices) or not indices:
        problem = f"there is no step {wrong[0]}" if wrong else "a step is given twice, or none is given"
        what = "trace has steps 0 (the first denoiser call)" if isinstance(sequence, Trace) else "sequence has frames 0"
        raise InputError(
            f"The steps {indices} cannot be explained: {problem}. This {what} to {len(sequence) - 1}; give each once."
        )
    return [sequence[index] for index in indices]


def options_of(options: Any) -> dict[str, Any]:
    """A frozen dataclass as plain values, nested ones with the name of their class: what `attrs` and run.json keep.

    A nested one that has a `plain()` of its own says with it what to keep.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = type(value).__name__
            own = value.plain() if hasattr(value, "plain") else options_of(value)
            plain |= {f"{field.name}_{key}": inner for key, inner in own.items()}
        elif callable(value):
            plain[field.name] = getattr(value, "__qualname__", type(value).__name__)
        elif value is not None:
            plain[field.name] = value
    return plain
