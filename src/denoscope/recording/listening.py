"""The attention of one step's denoiser, listened to where it reads one text of the run, for one picture.

The step is made again by the engine that answers for it. In the call that reads the text, the places of text and
picture are measured before the first answer is used (`hooks/places.py`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..errors import CaptureError, ModelError, in_short
from .comparing import FAILURES, refuse_memory
from .hooks.attention import AttentionCall, attending, unreadable
from .hooks.places import Box, Measured, TextInput, measured, sample_paths
from .hooks.surroundings import own_network
from .hooks.trees import leaves, map_tensors
from .layout import Layout, halved, inside_box, reduced
from .reading import Reading, read_run
from .steps import Step

Wanted = Callable[[str], bool]
"""True for the paths of layers that are asked for."""


@dataclass(frozen=True, eq=False)
class Attended:
    """One attention between picture and text: the call, and where text and picture lie in it.

    `rows` are its rows that belong to the text's picture: one, or one for each frame. `keys` are the keys of each
    numbered position of the text. `grid` is the form of the map that the picture's `queries` have.
    """

    call: AttentionCall
    rows: tuple[int, ...]
    keys: Mapping[int, list[int]]
    queries: tuple[int, ...]
    grid: tuple[int, ...] | None
    is_plain: bool = True
    """True if the denoiser is passed its samples as one tensor (rows, channels, h, w)."""

    @property
    def is_joint(self) -> bool:
        """True if text and picture are one sequence, so that the text attends too."""
        queries, keys = self.call.size
        return bool(self.keys) and queries == keys and len(self.queries) < queries


def reading_of(step: Step, half: str = "conditional", prompt_text: str | None = None) -> Reading:
    """Return how the denoiser reads a text of the step's run; measured once. Raises as `read_run`."""
    if step.run is None:
        raise ModelError("This step belongs to no recorded run, so it is not known how its denoiser reads a text.")
    run = step.run
    name = run.denoiser_name(step.index)
    key = (half, step.row or 0, prompt_text, name)
    if key not in run.readings:
        frames = step.layout.frames or run.unit
        run.readings[key] = read_run(run, step.index, step.row or 0, half, prompt_text, frames)
    reading: Reading = run.readings[key]
    return reading


@contextmanager
def listening(
    step: Step,
    reading: Reading,
    on_attention: Callable[[Attended], None],
    *,
    wanted: Wanted = lambda path: True,
    through: bool = False,
    every: bool = False,
    afterwards: Callable[["Ear"], None] | None = None,
) -> Iterator["Ear"]:
    """While open, call `on_attention` for the wanted attentions of the call that reads a text.

    `every` passes on attention of the picture to itself too. `afterwards` is called behind that call, while the
    pipeline is still as it was for it. Raises `ModelError` if the text was changed since, `CaptureError` where a wanted
    layer reads it and cannot be listened to.
    """
    ear = Ear(step, reading, on_attention, wanted, every, afterwards)
    with ExitStack() as undo:
        undo.callback(ear.denoiser.register_forward_pre_hook(ear.before, with_kwargs=True).remove)
        undo.callback(ear.denoiser.register_forward_hook(ear.after).remove)
        undo.enter_context(
            attending(ear.denoiser, ear.hear, through=through, wanted=ear.is_wanted, once=False, required=False)
        )
        yield ear
    if ear.measured is None:
        raise CaptureError(f"The call of {reading.name} that reads the text was not made again.")


class Ear:
    """Counts the denoiser's calls, and hears the one that reads the text."""

    def __init__(
        self,
        step: Step,
        reading: Reading,
        on_attention: Callable[[Attended], None],
        wanted: Wanted,
        every: bool,
        afterwards: Callable[["Ear"], None] | None = None,
    ):
        assert step.run is not None
        self.afterwards = afterwards
        self.step, self.reading, self.on_attention, self.wanted, self.every = step, reading, on_attention, wanted, every
        self.denoiser = own_network(step.run.resumption.modules[reading.name])
        self.skip = 0 if step.hears_directly else step.run.calls_before(step.index, reading.name)
        self.calls = 0
        self.is_on = False
        self.measured: Measured | None = None
        self.rows: tuple[int, ...] = ()
        self.is_plain = True
        self.tree: Any = None
        self.output: Any = None
        self.sample: tuple[Any, ...] = ()

    def before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.calls == self.skip + self.reading.ordinal:
            tree = map_tensors(lambda tensor: tensor, (args, kwargs))  # some denoisers empty their lists and dicts
            if not self.reading.is_of(tree):
                raise ModelError(
                    f"The text that the denoiser read at step {self.step.index} is not what the pipeline makes of its "
                    "prompt now, so its words are not known: it was switched on the way by a callback, or weights were "
                    "changed since. Ask about another step, or record the picture again."
                )
            self.measured = self.measured_with(self.reading, tree)
            self.rows = self.rows_in(self.reading, tree)
            self.tree, self.sample = tree, sample_paths(tree)
            self.is_plain = is_plain(tree)
            self._refuse_unread()
            self.is_on = True

    def after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.calls += 1
        was_on, self.is_on = self.is_on, False
        if was_on:
            self.output = output
        if was_on and self.afterwards is not None:
            self.afterwards(self)

    def is_wanted(self, path: str, cross: bool) -> bool:
        return self.is_on and self.measured is not None and self.wanted(path) and path in self.paths

    def hear(self, call: AttentionCall) -> None:
        assert self.measured is not None
        places = self.measured.sites.get(call.site)
        if places is None and self.every:
            places = self.measured.pictures.get(call.site)
        if places is None:
            return
        rows = tuple(row for own in self.rows for row in places.rows[own])
        if not rows:  # an attention of other rows, as that of perturbed guidance
            return
        keys = places.of_text(self.rows[0])
        grid = places.grid
        if grid is None:
            grid = _usual_grid(self.step.layout, len(places.queries), len(rows))
        elif not grid:
            grid = None
        if grid is not None and len(grid) == 3 and grid[0] == 1 < len(rows):  # each frame has a row of the text
            grid = (len(rows), *grid[1:])
        self.on_attention(Attended(call, rows, keys, places.queries, grid, self.is_plain))

    @property
    def paths(self) -> frozenset[str]:
        """The layers that are listened to."""
        assert self.measured is not None
        sites = [*self.measured.sites, *(self.measured.pictures if self.every else ())]
        return frozenset(path for path, _ in sites)

    @staticmethod
    def rows_in(reading: Reading, tree: Any) -> tuple[int, ...]:
        """Return the picture's rows in a call: its own, or those of a picture that is asked about alone."""
        return reading.rows_of(inputs_in(reading, tree)[0].rows)

    def measured_with(self, reading: Reading, tree: Any) -> Measured:
        """Return the places of a text in a call of the denoiser with these arguments; measured once a run."""
        run = self.step.run
        assert run is not None
        key = (id(reading), tuple((path, tuple(tensor.shape)) for path, tensor in leaves(tree).items()))
        if key not in run.measures:
            boxes = partial(boxes_of, self.step.layout, _places_in_sample(self.step))
            run.measures[key] = self._probed(tree, inputs_in(reading, tree), boxes)
        known: Measured = run.measures[key]
        return known

    def _probed(self, tree: Any, inputs: list[TextInput], boxes: Callable[[torch.Tensor], list[Box]]) -> Measured:
        try:
            return measured(self.denoiser, tree, inputs, boxes)
        except FAILURES as error:
            refuse_memory(error)
            raise CaptureError(
                f"Where text and picture lie in this {type(self.denoiser).__name__} cannot be measured: one of its "
                f"calls, made again with attention switched off, failed ({in_short(error, 160)}). Use a method without "
                "words, such as df-rise."
            ) from error

    def _refuse_unread(self) -> None:
        """Raise `CaptureError` for a wanted layer that reads the text and cannot be listened to."""
        assert self.measured is not None
        for path in self.measured.unread:
            if self.wanted(path):
                raise unreadable(path, self.denoiser.get_submodule(path), 0)


def inputs_in(reading: Reading, tree: Any) -> list[TextInput]:
    """Return a text's arguments with the rows that they have in this call."""
    tensors = leaves(tree)
    return [one if one.is_list else replace(one, rows=tensors[one.path].shape[one.axis - 1]) for one in reading.inputs]


def is_plain(tree: Any) -> bool:
    """Return True if a denoiser is passed its samples as one tensor (rows, channels, h, w)."""
    paths = sample_paths(tree)
    return len(paths) == 1 and leaves(tree)[paths[0]].ndim == 4


def _places_in_sample(step: Step) -> int:
    return 0 if step.direct is None else step.direct.calls[0].part.start


def boxes_of(layout: Layout, start: int, tensor: torch.Tensor) -> list[Box]:
    """Return the whole sample and parts of it, in the denoiser's argument: upper half, left half, earlier half.

    `start` is where packed positions of the sample begin among others in the argument.
    """
    shape = layout.shape
    if "p" not in layout.order and tensor.ndim == 3:  # the pipeline packs what its scheduler keeps unpacked
        packed = next((grid for grid in reduced(shape) if math.prod(grid) == tensor.shape[1]), None)
        if packed is None:
            return []
        layout = replace(
            layout, order="pc", grid=(packed[-2], packed[-1]), frames=None if len(packed) == 2 else packed[0]
        )
    halves = [slice(0, max(1, side // 2)) for side in shape]
    whole = tuple(slice(0, side) for side in shape)
    boxes = [whole, *[(*whole[:axis], halves[axis], *whole[axis + 1 :]) for axis in range(len(shape))]]
    return [Box(_index(layout, start, tensor, _scaled(box, shape, layout.shape)), _covers(box, shape)) for box in boxes]


def _scaled(box: Sequence[slice], shape: Sequence[int], other: Sequence[int]) -> list[slice]:
    """Return a box of a map as a box of the same map in another grid."""
    parts = zip(box, shape, other, strict=True)
    return [slice(part.start * size // side, math.ceil(part.stop * size / side)) for part, side, size in parts]


def _covers(box: Sequence[slice], shape: tuple[int, ...]) -> dict[tuple[int, ...], torch.Tensor]:
    return {grid: inside_box(box, shape, grid) for grid in reduced(shape)}


def _index(layout: Layout, start: int, tensor: torch.Tensor, box: Sequence[slice]) -> tuple[Any, ...]:
    """Return the index of a box of the map in the denoiser's argument, whose last axes are the sample's."""
    order = layout.order
    index: list[Any] = [slice(None)] * tensor.ndim
    if "p" in order:
        inside = torch.zeros(layout.shape, dtype=torch.bool)
        inside[tuple(box)] = True
        places = inside.flatten().nonzero().flatten() + start
        index[order.index("p") - len(order)] = places.to(tensor.device)
        return tuple(index)
    names = ("y", "x") if layout.frames is None or "f" not in order else ("f", "y", "x")
    for name, part in zip(names, box[-len(names) :], strict=True):
        index[order.index(name) - len(order)] = part
    return tuple(index)


def _usual_grid(layout: Layout, queries: int, rows: int) -> tuple[int, ...] | None:
    """Return the grid of a network that halves maps, where the order of its queries could not be measured."""
    for grid in halved(layout.grid):
        if grid[0] * grid[1] == queries and (layout.frames is None or rows == layout.frames):
            return grid if layout.frames is None else (layout.frames, *grid)
    return None
