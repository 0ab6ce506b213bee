"""The seam of all attributors: names, the loop over steps, progress, labels, finished steps after an interruption."""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
import xarray as xr

from ..errors import DenoscopeError, InputError, Interrupted, did_you_mean, sentence
from ..recording.batches import remembered_portions
from ..recording.hooks.surroundings import Autocast
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import Target
from ..vision.classifiers import at_rest
from ..vision.frames import Frame, Frames
from . import Needs, load_built_in

Advance = Callable[[int], None]

DIMS = {1: ("step",), 2: ("step", "draw"), 3: ("step", "y", "x"), 4: ("step", "draw", "y", "x")}
"""The names of an array's axes by their number, the steps' axis first. Only frames of a photograph have draws."""
DIMS_OF_CLIPS = {**DIMS, 4: ("step", "frame", "y", "x")}
"""The same for a trace of a clip."""

StepResult = Mapping[str, np.ndarray | float | xr.DataArray]
"""The maps and numbers of one step. `DIMS` names the axes of arrays; an `xarray.DataArray` brings its own names."""

DESCRIPTION = ("title", "reading", "signed")
"""Fields that describe the maps and are no options."""


class Attributor:
    """`attributor(sequence, steps=None) -> xarray.Dataset`: `saliency` (step, y, x) and the method's other variables.

    The sequence is a trace, or frames for a method that reads pictures; then there is a dim `draw` behind `step`.
    A trace of a clip has the dim `frame` there, counted in the sample's frames. Coordinates `y` and `x` are centres of
    cells in pixels of the picture, y from the top. The attribute `engine` names the engines of the trace's steps that
    the method asked (`Step.engine`), if it asked any.

    A subclass is a frozen dataclass of options with one method, `explain`; or with `prepared`, if it must know of the
    whole run before any step, which returns an attributor with `explain`. `title`, `reading` (how to read the map) and
    `signed` (True if the map's sign has a meaning) go into the result's attributes. `needs` and `every_step` are
    facts of the class: what the method must be given besides the sequence, and whether it is cheap enough to explain
    every step unless steps are chosen.
    """

    needs: ClassVar[Needs | None] = None
    every_step: ClassVar[bool] = False

    title: str = ""
    reading: str = ""
    signed: bool = False

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        """Explain one step: return `saliency` ([frame,] y, x), other maps and numbers; call `advance(work done)`.

        A variable with dims of its own, such as a layer or a word, is an `xarray.DataArray` with named dims and
        coordinates, which are the same at every step. The base class puts `step` before them. Raises `InputError`
        where the method explains steps of a whole run only: see `prepared`.
        """
        raise InputError(
            f"{type(self).__name__} needs the whole run, and one step of it was given. Give the trace: "
            f"{type(self).__name__}()(trace, steps=[{step.index}])."
        )

    def prepared(self, sequence: Trace | Frames) -> "Attributor":
        """Return the attributor that explains the steps of this sequence: by default this one."""
        return self

    def options(self) -> dict[str, Any]:
        """Return the options as plain values, for the attributes of the result and for run.json."""
        return {name: value for name, value in options_of(self).items() if name not in DESCRIPTION}

    def networks(self) -> Sequence[torch.nn.Module]:
        """Return the networks, besides the denoiser, that `explain` calls; they are at rest meanwhile."""
        target = getattr(self, "target", None)
        return target.networks() if isinstance(target, Target) else ()

    def work(self, step: Step | Frame) -> int:
        """Return how many units `explain` will advance by, for the progress bar."""
        return 1

    def groups(self, steps: Sequence[Step | Frame]) -> list[Sequence[Step | Frame]]:
        """Return the steps in the portions that `explain_group` takes: by default one step each."""
        return [[step] for step in steps]

    def explain_group(self, steps: Sequence[Step | Frame], advance: Advance) -> list[StepResult]:
        """Return what `explain` returns for each of these steps."""
        return [self.explain(step, advance) for step in steps]

    def __call__(
        self,
        sequence: Trace | Frames,
        steps: Sequence[int] | None = None,
        *,
        show_progress: bool = False,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Explain the chosen steps (all by default) of a trace, or of frames.

        Raises `InputError` for steps that are not there or a trace of several pictures. Raises `Interrupted`, with the
        finished steps in its `partial`, on Ctrl-C or when a later step fails; the first step's own error is raised.
        """
        chosen = choose(sequence, steps)
        if isinstance(sequence, Trace):
            sequence.forget_checks()
        with _undisturbed(self.networks()), remembered_portions():
            ready = self.prepared(sequence)
            if show_progress:
                with _bar(self.title, sum(self.work(step) for step in chosen)) as advance:
                    return ready._explained(sequence, chosen, advance)
            return ready._explained(sequence, chosen, advance or _silent)

    def _explained(self, sequence: Trace | Frames, chosen: Sequence[Step | Frame], advance: Advance) -> xr.Dataset:
        results: list[StepResult] = []
        try:
            for group in self.groups(chosen):
                results += self.explain_group([_at_home(step) for step in group], advance)
        except (KeyboardInterrupt, DenoscopeError, RuntimeError) as stop:  # RuntimeError: out of memory
            if not results and not isinstance(stop, KeyboardInterrupt):
                raise
            partial = self._labelled(sequence, chosen[: len(results)], results) if results else None
            why = "Interrupted:" if isinstance(stop, KeyboardInterrupt) else f"{sentence(stop)} Because of that,"
            message = f"{why} {len(results)} of {len(chosen)} steps of {self.title} were finished and are kept."
            raise Interrupted(message, partial) from stop
        return self._labelled(sequence, chosen, results)

    def _labelled(
        self, sequence: Trace | Frames, steps: Sequence[Step | Frame], results: Sequence[StepResult]
    ) -> xr.Dataset:
        coords = {
            "step": [step.index for step in steps],
            "timestep": ("step", [step.timestep for step in steps]),
            "log_snr": ("step", [_log_snr(step) for step in steps]),
        }
        dims = DIMS_OF_CLIPS if is_clip(sequence) else DIMS
        variables = {name: stacked([result[name] for result in results], dims) for name in results[0]}
        attrs = {name: getattr(self, name) for name in DESCRIPTION} | self.options() | _engines(steps)
        storable = {name: int(value) if isinstance(value, bool) else value for name, value in attrs.items()}
        return in_pixels(xr.Dataset(variables, coords=coords, attrs=storable), sequence)


def is_clip(sequence: Trace | Frames) -> bool:
    """Return True for a trace whose samples have frames."""
    return isinstance(sequence, Trace) and sequence[0].layout.frames is not None


def _engines(steps: Sequence[Step | Frame]) -> dict[str, str]:
    """Return the names of the engines that were asked about these steps, as an attribute; nothing if none was."""
    asked = [step.asked_engine for step in steps if isinstance(step, Step)]
    names = dict.fromkeys(name for name in asked if name is not None)
    return {"engine": ", ".join(names)} if names else {}


def _at_home(step: Step | Frame) -> Step | Frame:
    """Return a step of a trace that is kept elsewhere with its tensors on the pipeline's device, for this time."""
    return step.brought() if isinstance(step, Step) else step


def _log_snr(step: Step | Frame) -> float:
    """Return the log-SNR of a step or frame, NaN if the scheduler's noise level is not known."""
    return float("nan") if isinstance(step, Step) and step.noise is None else step.log_snr


# Methods by their names.

METHODS: dict[str, Callable[..., Attributor]] = {}
"""Every registered method: a class, or a class method or function that returns an attributor, by its name."""


def register(name: str) -> Callable[[Callable[..., Attributor]], Callable[..., Attributor]]:
    """Return a decorator that registers an attributor class, or a class method of one, under a name."""

    def enter(factory: Callable[..., Attributor]) -> Callable[..., Attributor]:
        METHODS[name] = factory
        return factory

    return enter


def list_methods(needs: Needs | Literal["any"] | None = None) -> list[str]:
    """Return the names of methods, sorted: by default those that `denoscope explain --methods` takes.

    These need no label. `needs="label"` lists the methods that explain a label, `needs="words"` those with a map for
    every word, `needs="any"` every method.
    """
    load_built_in()
    if needs is None:
        return sorted(name for name in METHODS if needs_of(name) != "label")
    return sorted(name for name in METHODS if needs in ("any", needs_of(name)))


def needs_of(name: str) -> Needs | None:
    """Return what a method needs, "label" or "words"; None if it needs neither, or if no method has the name."""
    return _class_of(name).needs


def explains_every_step(name: str) -> bool:
    """Return True if a method explains every step unless steps are chosen; False if no method has the name."""
    return _class_of(name).every_step


def _class_of(name: str) -> type[Attributor]:
    """Return the class behind a name; `Attributor` itself, with its default facts, where there is none."""
    load_built_in()
    factory = METHODS.get(name)
    owner = factory if isinstance(factory, type) else getattr(factory, "__self__", None)
    return owner if isinstance(owner, type) and issubclass(owner, Attributor) else Attributor


def method(name: str, **options: Any) -> Attributor:
    """Return the attributor of a name, with its options.

    Raises `InputError` for an unknown name, with the nearest one, and for a method of a label without its target.
    """
    load_built_in()
    if name not in METHODS:
        raise InputError(f'There is no method "{name}". {did_you_mean(name, list_methods())}')
    if needs_of(name) == "label" and "target" not in options:
        raise InputError(
            f'The method "{name}" explains a label, and none was given. Use denoscope recognise, or in Python '
            f'method("{name}", target=ClassScore(classifier, label)). Without a label: {", ".join(list_methods())}.'
        )
    return METHODS[name](**options)


# Steps.


@overload
def choose(sequence: Trace, steps: Sequence[int] | None) -> list[Step]: ...
@overload
def choose(sequence: Frames, steps: Sequence[int] | None) -> list[Frame]: ...
@overload
def choose(sequence: Trace | Frames, steps: Sequence[int] | None) -> list[Step] | list[Frame]: ...
def choose(sequence: Trace | Frames, steps: Sequence[int] | None) -> list[Step] | list[Frame]:
    """Return the steps of a trace, or the frames, by their indices; all of them for None.

    Raises `InputError` for an index that is not there, one given twice, a trace of several pictures, or samples that
    lie nowhere on the picture (`Step.layout`).
    """
    if isinstance(sequence, Trace) and sequence.pictures != 1:
        raise InputError(
            f"This trace holds {sequence.pictures} pictures, and an explanation is of one. "
            "Choose it: attributor(trace.picture(0))."
        )
    indices = range(len(sequence)) if steps is None else _indices(sequence, steps)
    if isinstance(sequence, Trace):
        sequence[0].layout  # noqa: B018  (refuses samples that lie nowhere on the picture)
        return [sequence[index] for index in indices]
    return [sequence[index] for index in indices]


def _indices(sequence: Trace | Frames, steps: Sequence[int]) -> list[int]:
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
    return indices


# Results.


def stacked(
    values: Sequence[np.ndarray | float | xr.DataArray], dims: Mapping[int, tuple[str, ...]] = DIMS
) -> xr.DataArray:
    """Return the values of several steps as one array, `step` in front; `dims` names the axes of plain arrays.

    >>> stacked([xr.DataArray([1.0, 2.0], {"word": ["red", "circle"]})] * 3).dims
    ('step', 'word')
    """
    named = [value for value in values if isinstance(value, xr.DataArray)]
    if named:
        return xr.concat(named, "step", coords="minimal", compat="override", join="exact")
    array = np.stack([np.asarray(value) for value in values])
    return xr.DataArray(array, dims=dims[array.ndim])


def in_pixels(maps: xr.Dataset, sequence: Trace | Frames) -> xr.Dataset:
    """Return maps of a sequence with the coordinates `y` and `x`: centres of cells in pixels, y from the top.

    Frames are counted from 0.
    """
    if "frame" in maps.dims and "frame" not in maps.coords:
        maps = maps.assign_coords(frame=np.arange(maps.sizes["frame"]))
    sides = [name for name in ("y", "x") if name in maps.dims]
    if not sides:
        return maps
    pixels = dict(zip(("y", "x"), picture_size(sequence), strict=True))
    centres = {name: cell_centres(maps.sizes[name], pixels[name]) for name in sides}
    return maps.assign_coords({name: (name, values, {"units": "pixel"}) for name, values in centres.items()})


def cell_centres(cells: int, pixels: int) -> np.ndarray:
    """Return the centres of the cells along a side of so many pixels, (cells,): (i + ½) · pixels / cells.

    >>> cell_centres(4, 16)
    array([ 2.,  6., 10., 14.])
    """
    return (np.arange(cells) + 0.5) * pixels / cells


def picture_size(sequence: Trace | Frames) -> tuple[int, int]:
    """Return the height and width in pixels of the pictures, or of the clips' frames, of a sequence.

    A trace whose pipeline returned no picture (`output_type="latent"`) is decoded once to find out.
    """
    if isinstance(sequence, Frames):
        return sequence.clean.shape[-2], sequence.clean.shape[-1]
    run = sequence[-1].run
    pictures = None if run is None else run.decoding.picture
    if pictures is None:
        with torch.no_grad():
            pictures = sequence[-1].decode(sequence[-1].prev_sample)
    return pictures.shape[-2], pictures.shape[-1]


def form_of(title: str) -> str:
    """Return the form that a title names behind its comma, "" if it names none.

    >>> form_of("DF-RISE, contrast")
    'contrast'
    """
    return title.partition(", ")[2]


def options_of(options: Any) -> dict[str, Any]:
    """Return a frozen dataclass as plain values, nested ones with the name of their class.

    A nested dataclass that has a `plain()` method chooses its values with it.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = type(value).__name__
            inner = value.plain() if hasattr(value, "plain") else options_of(value)
            plain |= {f"{field.name}_{key}": part for key, part in inner.items()}
        elif callable(value):
            plain[field.name] = getattr(value, "__qualname__", type(value).__name__)
        elif value is not None:
            plain[field.name] = value
    return plain


# Surroundings.


@contextmanager
def _undisturbed(networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Keep networks at rest, inference mode off, which forbids gradients, and autocast too; undo all at the end."""
    with ExitStack() as undo:
        gradients = torch.is_grad_enabled()
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.set_grad_enabled(gradients))
        undo.enter_context(Autocast.off())  # the recorded calls have their own
        for network in networks:
            undo.enter_context(at_rest(network))
        yield


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    """Show a progress bar while open; yield what advances it."""
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def _silent(done: int) -> None:
    """Ignore the work done."""
