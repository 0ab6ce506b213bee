"""The places of text and picture in a denoiser's attentions, measured on one of its calls.

The call is made again with its attentions handing on nothing (`unmixed`), once as it was and once for each set of
disturbed tokens, and for disturbed parts of the sample. What changes is where they lie, in every layer, whatever the
order of text and picture, registers and padding.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...errors import CaptureError
from .attention import Site, attention_layers
from .calls import SAMPLE_NAMES
from .layers import without_hooks
from .trees import Path, leaves, with_leaves
from .unmixed import CLEAR, Seen, Unmixed, changed, code, decoded, signs, unmixed

Tree = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of a call."""


@dataclass(frozen=True)
class TextInput:
    """A sequence of vectors among a denoiser's arguments: (…, rows, length, features), or a list of rows of their own.

    `path` is the argument's, `axis` that of the tokens, counted from the end. `is_list` is True where its rows are the
    tensors of a list, (length, features) each.
    """

    path: Path
    rows: int
    length: int
    is_list: bool = False
    axis: int = -2

    @classmethod
    def of(cls, path: Path, tensor: torch.Tensor, axis: int = -2) -> "TextInput":
        """Return the sequence in a tensor whose tokens lie on this axis, and its rows on the one before."""
        return cls(path, tensor.shape[axis - 1], tensor.shape[axis], axis=axis)


@dataclass(frozen=True)
class Places:
    """Where text and picture lie in one attention, for each row of the denoiser's input.

    `rows[r]` are the rows of the attention that come of row r: one, or one for each frame. `keys[r]` has the text's
    number of each key of these rows, −1 for other keys. `queries` are the picture's, `count` the number of all.
    `grid` is the map's form that the picture's queries have, None if it was not measured, empty if they are in no
    order of rows.
    """

    rows: tuple[tuple[int, ...], ...]
    keys: tuple[torch.Tensor, ...]
    queries: tuple[int, ...]
    count: int
    grid: tuple[int, ...] | None = None
    by_number: dict[int, dict[int, list[int]]] = field(default_factory=dict, repr=False, compare=False)
    """What `of_text` returned, by its rows."""

    def of_text(self, row: int) -> Mapping[int, list[int]]:
        """Return the keys of each number of the text, for a row of the denoiser's input."""
        if row not in self.by_number:
            found = self.by_number.setdefault(row, {})
            for place, number in enumerate(self.keys[row].tolist()):
                if number >= 0:
                    found.setdefault(int(number), []).append(place)
        return self.by_number[row]

    @property
    def reads_text(self) -> bool:
        """True if text is among the keys, and the picture among the queries."""
        return bool(self.queries) and any(bool((numbers >= 0).any()) for numbers in self.keys)


@dataclass(frozen=True)
class Measured:
    """The places of all attentions of one call that read the text, and of the layers that could not be read.

    `inputs` are the text's arguments; their positions are numbered one behind the other. `unread` are layers that are
    passed a text and cannot be listened to, `silent` all of the picture that cannot, such as linear attention.
    `pictures` are places of attentions of the picture without text.
    """

    inputs: tuple[TextInput, ...]
    sites: Mapping[Site, Places]
    unread: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    pictures: Mapping[Site, Places] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many positions all of the text's arguments have together."""
        return sum(one.length for one in self.inputs)


def number_of(inputs: Sequence[TextInput], path: Path, position: int) -> int:
    """Return the number of a position of one of a text's arguments, which are numbered one behind the other."""
    before = 0
    for one in inputs:
        if one.path == path:
            return before + position
        before += one.length
    raise CaptureError(f"The argument {path} was not listened to as a text.")


def text_inputs(tree: Tree, sample: Sequence[Path]) -> tuple[TextInput, ...]:
    """Return the arguments that may be text: sequences of vectors that are not the sample."""
    found: dict[Path, TextInput] = {}
    for path, tensor in leaves(tree).items():
        if path in sample or not tensor.is_floating_point() or tensor.shape[-1:] in ((), (1,)):
            continue
        if any(word in str(path) for word in NO_TEXTS):
            continue
        if tensor.ndim in (3, 4):  # several layers of an encoder may lie beside each other, token by token
            several = tensor.ndim == 4 and tensor.shape[-2] < tensor.shape[-3] and tensor.shape[0] < tensor.shape[-3]
            found[path] = TextInput.of(path, tensor, -3 if several else -2)
        elif tensor.ndim == 2 and isinstance(_holder(tree, path), list):
            own, before = path[:-1], found.get(path[:-1])
            rows, length = (int(path[-1]) + 1, max(tensor.shape[0], before.length if before is not None else 0))
            found[own] = TextInput(own, rows, length, is_list=True)
    return tuple(found.values())


NO_TEXTS = ("rotary", "rope", "coords", "freqs", "block")
"""Parts of the names of arguments that look like a text and are none: positions, and a ControlNet's residuals.

They would only be measured in vain: which arguments are the text is followed from its encoder afterwards.
"""


def _holder(tree: Any, path: Path) -> Any:
    """Return the list, tuple or dict that holds a tensor."""
    for key in path[:-1]:
        tree = tree[key]
    return tree


def sample_paths(tree: Tree) -> tuple[Path, ...]:
    """Return the paths of the argument with the sample: the first one, or the one of its names; several of a list."""
    args, kwargs = tree
    if args:
        return tuple(path for path in leaves(tree) if path[:2] == (0, 0))
    names = [name for name in SAMPLE_NAMES if name in kwargs]
    return tuple(path for path in leaves(tree) if names and path[:2] == (1, names[0]))


def measured(
    module: torch.nn.Module,
    tree: Tree,
    inputs: Sequence[TextInput] | None = None,
    boxes: Callable[[torch.Tensor], list["Box"]] | None = None,
) -> Measured:
    """Measure where text and picture lie in the attentions of a call with these arguments.

    `inputs` are the text's arguments, by default all that may be; `boxes` returns parts of the sample to disturb, for
    a tensor of the sample, the whole sample first. The module's own hooks do not run.
    """
    samples = sample_paths(tree)
    inputs = text_inputs(tree, samples) if inputs is None else tuple(inputs)
    probe = _Probe(module, tree, tuple(inputs), samples)
    with without_hooks(module), torch.no_grad(), torch.random.fork_rng(devices=_gpus(tree)):
        return probe.measured(boxes)


@dataclass(eq=False)
class HandedOn:
    """The places of a denoiser's one text where every layer is passed it as it is, by cross-attention.

    Its keys are then the text's positions in their order. That is seen while a call runs: `look` at each layer before
    it runs, `places_of` each attention in it, and `measured` at the end, None where a layer is passed anything else.
    """

    inputs: tuple[TextInput, ...]
    text: torch.Tensor
    passed: dict[str, bool] = field(default_factory=dict)
    sites: dict[Site, Places] = field(default_factory=dict)
    is_other: bool = False

    @classmethod
    def of(cls, tree: Tree) -> "HandedOn | None":
        """Return what is to be seen in a call with these arguments; None for other than one text in a tensor."""
        inputs = text_inputs(tree, sample_paths(tree))
        if len(inputs) != 1 or inputs[0].is_list:
            return None
        return cls(inputs, leaves(tree)[inputs[0].path])

    def look(self, path: str, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See what a layer is passed; a hook before it."""
        states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        joins = getattr(layer, "add_k_proj", None) is not None
        if states is not None or joins:
            same = states is self.text or (isinstance(states, torch.Tensor) and torch.equal(states, self.text))
            self.passed[path] = same and not joins

    def places_of(self, site: Site, rows: int, queries: int, keys: int) -> Places | None:
        """Return the places in an attention of so many rows, queries and keys; None where they are others."""
        count, length = self.text.shape[:2]
        if not self.passed.get(site[0]):
            return None
        if (rows, keys) != (count, length) or site[1]:
            self.is_other = True
            return None
        numbers = torch.arange(length)
        own = Places(tuple((row,) for row in range(count)), (numbers,) * count, tuple(range(queries)), queries)
        self.sites[site] = own
        return own

    def measured(self) -> Measured | None:
        """Return all places after the call; None where the text is not handed on as it is."""
        if self.is_other or not self.passed or not all(self.passed.values()):
            return None
        heard = {path for path, _ in self.sites}
        return Measured(self.inputs, self.sites, tuple(path for path in self.passed if path not in heard))


@dataclass(frozen=True)
class Box:
    """A part of the sample's tensor to disturb, by its index, and the candidates' places that it covers, by grid."""

    index: tuple[Any, ...]
    covers: Mapping[tuple[int, ...], torch.Tensor]


@dataclass(frozen=True)
class _Probe:
    module: torch.nn.Module
    tree: Tree
    inputs: tuple[TextInput, ...]
    samples: tuple[Path, ...]

    def measured(self, boxes: Callable[[torch.Tensor], list[Box]] | None) -> Measured:
        count = sum(one.length for one in self.inputs)
        rows = max((one.rows for one in self.inputs), default=1)
        before, handed = self._looked_at()
        if not count:
            return Measured(self.inputs, {}, tuple(before.silent))
        sets, by_row = [], []
        if handed is None:
            everything = torch.ones(count, dtype=torch.bool)
            sets = [self._run(self._disturbed_text(members, None)) for members in code(count)]
            by_row = [self._run(self._disturbed_text(everything, row)) for row in range(rows)]
        sampled = [self._run(self._disturbed_samples(None, row)) for row in range(rows)]
        parts = [] if boxes is None else self._boxes(boxes)
        moved = self._run(self._disturbed_samples(parts[0] if parts else None))
        by_box = [(box, self._run(self._disturbed_samples(box))) for box in parts[1:]]
        sites: dict[Site, Places] = {}
        pictures: dict[Site, Places] = {}
        for site, seen in before.attentions.items():
            runs = (*sets, *by_row, *sampled, moved, *(run for _, run in by_box))
            others = [run.attentions.get(site) for run in runs]
            if any(other is None or other.key.shape != seen.key.shape for other in others):
                continue
            moved_rows = _moved_rows(site, seen, sampled)
            if handed is None:
                places = self._places(site, seen, count, sets, by_row, moved, by_box, moved_rows[0])
            else:
                places = self._handed_places(handed, site, seen, moved, by_box, moved_rows[0])
            if places.reads_text:
                sites[site] = places
            elif places.queries:
                pictures[site] = replace(places, rows=moved_rows)
        unread = tuple(path for path, (cross, _) in before.silent.items() if cross)
        silent = tuple(
            path for path, (_, size) in before.silent.items() if moved.silent.get(path, (True, size))[1] != size
        )
        return Measured(self.inputs, sites, unread, silent, pictures)

    def _looked_at(self) -> tuple[Unmixed, HandedOn | None]:
        """Return what attends in the call as it is, and whether every layer is passed its one text as it is."""
        own = self.inputs == text_inputs(self.tree, self.samples)  # one text, and nothing else that could be one
        handed = HandedOn.of(self.tree) if own else None
        if handed is None:
            return self._run({}), None
        with ExitStack() as undo:
            for path, layer in attention_layers(self.module).items():
                look = functools.partial(handed.look, path)
                undo.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
            before = self._run({})
        for site, seen in before.attentions.items():
            handed.places_of(site, len(seen.key), seen.query.shape[1], seen.key.shape[1])
        return before, None if handed.measured() is None else handed

    def _handed_places(
        self,
        handed: HandedOn,
        site: Site,
        seen: Seen,
        moved: Unmixed,
        by_box: list[tuple[Box, Unmixed]],
        moved_rows: Sequence[int],
    ) -> Places:
        """Return the places in an attention of a network whose layers are passed the text as it is."""
        own = handed.sites.get(site)
        rows = ((),) * handed.text.shape[0] if own is None else own.rows
        queries, grid = self._queries(seen, moved.attentions[site], by_box, site, rows[0] or moved_rows)
        keys = (torch.full((seen.key.shape[1],), -1),) * len(rows) if own is None else own.keys
        return Places(rows, keys, queries, seen.query.shape[1], grid)

    def _places(
        self,
        site: Site,
        seen: Seen,
        count: int,
        sets: list[Unmixed],
        by_row: list[Unmixed],
        moved: Unmixed,
        by_box: list[tuple[Box, Unmixed]],
        moved_rows: Sequence[int],
    ) -> Places:
        changes = [changed(run.attentions[site].key, seen.key) for run in sets]
        scale = torch.linalg.vector_norm(seen.key, dim=-1)
        numbers = decoded(changes, count, scale)
        if not seen.are_products:  # a text that is pooled into the modulation seems to be in the picture's own keys
            numbers = torch.where(_of_picture(moved.attentions[site].key, seen.key), -1, numbers)
        own = [tuple(_rows_of(changed(run.attentions[site].key, seen.key), numbers, scale).tolist()) for run in by_row]
        keys = tuple(_agreed(numbers, rows, count) for rows in own)
        queries, grid = self._queries(seen, moved.attentions[site], by_box, site, own[0] or moved_rows)
        return Places(tuple(own), keys, queries, seen.query.shape[1], grid)

    def _queries(
        self,
        seen: Seen,
        moved: Seen,
        by_box: list[tuple[Box, Unmixed]],
        site: Site,
        rows: Sequence[int],
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Return the queries that are the picture's, and the form of a map that they have."""
        is_picture = _of_picture(moved.query, seen.query).any(dim=0)
        if not bool(is_picture.any()):
            return (), None
        queries = tuple(is_picture.nonzero().flatten().tolist())
        return queries, _grid_of(queries, seen, by_box, site, rows)

    def _run(self, others: dict[Path, torch.Tensor]) -> Unmixed:
        args, kwargs = with_leaves(self.tree, others)
        with unmixed(self.module) as heard:
            self.module.forward(*args, **kwargs)
        return heard

    def _disturbed_text(self, members: torch.Tensor, row: int | None) -> dict[Path, torch.Tensor]:
        """Return the text's arguments with the members of a set disturbed, in one row or in all."""
        factors, start, found = signs(members), 0, {}
        tensors = leaves(self.tree)
        for one in self.inputs:
            own = factors[start : start + one.length]
            start += one.length
            paths = [path for path in tensors if path == one.path or (one.is_list and path[:-1] == one.path)]
            for path in paths:
                if row is not None and (path[-1] != row if one.is_list else row >= one.rows):
                    continue
                tensor = tensors[path]
                pushed = _push(tensor, own[: tensor.shape[one.axis]], one.axis)
                if not one.is_list and row is not None:
                    only = torch.zeros(tensor.shape[one.axis - 1], dtype=tensor.dtype, device=tensor.device)
                    only[row] = 1
                    pushed = pushed * along(only, one.axis - 1)
                found[path] = tensor + pushed
        return found

    def _disturbed_samples(self, box: Box | None, row: int | None = None) -> dict[Path, torch.Tensor]:
        tensors, found = leaves(self.tree), {}
        for place, path in enumerate(self.samples):
            tensor = tensors[path]
            if row is not None and len(self.samples) > 1 and place != row:
                continue
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)).to(tensor)
            if box is not None:
                only = torch.zeros_like(tensor)
                only[box.index] = 1
                noise = noise * only
            if row is not None and len(self.samples) == 1:
                noise[[other for other in range(len(noise)) if other != row]] = 0
            found[path] = tensor + tensor.float().std().clamp(min=1e-3).to(tensor) * noise
        return found

    def _boxes(self, boxes: Callable[[torch.Tensor], list[Box]]) -> list[Box]:
        tensors = leaves(self.tree)
        return boxes(tensors[self.samples[0]]) if self.samples else []


SIZE = 0.25
"""The size of what a token's vector is disturbed by, in spreads of the text's numbers."""


def along(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return numbers along an axis, counted from the end, of a tensor that they are multiplied with."""
    return values.reshape(-1, *[1] * (-1 - axis))


def _push(tensor: torch.Tensor, factors: torch.Tensor, axis: int) -> torch.Tensor:
    """Return what is added to a sequence of vectors: one direction, by each position's factor."""
    direction = torch.randn(tensor.shape[-1], generator=torch.Generator().manual_seed(5)).to(tensor)
    size = SIZE * tensor.float().std().clamp(min=1e-3).to(tensor)  # small: some normalise over all tokens
    return size * along(factors.to(tensor), axis) * direction


def _of_picture(moved: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return True for the positions (rows, positions) that change with the sample."""
    change, scale = changed(moved, before), torch.linalg.vector_norm(before, dim=-1)
    is_moved: torch.Tensor = (change > 1e-5 * scale.clamp(min=1e-12)) & (change > 1e-4 * change.max())
    return is_moved


def _rows_of(change: torch.Tensor, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the rows of an attention whose text changed with one row of the input."""
    of_text = torch.where(numbers >= 0, change, 0).sum(dim=1)
    size = torch.where(numbers >= 0, scale, 0).sum(dim=1).clamp(min=1e-12)
    share = of_text / size
    return (share > share.max() / CLEAR).nonzero().flatten() if float(share.max()) > 1e-5 else share.nonzero().flatten()


def _moved_rows(site: Site, seen: Seen, sampled: Sequence[Unmixed]) -> tuple[tuple[int, ...], ...]:
    """Return the rows of an attention whose queries change with each row of the sample."""
    rows = []
    for run in sampled:
        change = changed(run.attentions[site].query, seen.query).amax(dim=1)
        rows.append(tuple((change > 1e-4 * change.max().clamp(min=1e-12)).nonzero().flatten().tolist()))
    return tuple(rows)


def _agreed(numbers: torch.Tensor, rows: Sequence[int], count: int) -> torch.Tensor:
    """Return the numbers of the keys of some rows, −1 where they differ."""
    if not rows:
        return torch.full((numbers.shape[1],), -1)
    own = numbers[list(rows)]
    return _completed(torch.where((own == own[:1]).all(dim=0), own[0], -1).cpu(), count)


def _completed(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers of keys with those that were not clear, where all clear ones lie side by side in order.

    A layer that normalises over all tokens lets some of them change with the others; most are clear.
    """
    places = (numbers >= 0).nonzero().flatten()
    offsets = set((places - numbers[places]).tolist())
    if len(offsets) != 1 or 2 * len(places) < count:
        return numbers
    offset = offsets.pop()
    inside = torch.arange(max(0, offset), min(len(numbers), offset + count))
    completed = numbers.clone()
    completed[inside] = inside - offset
    return completed


def _grid_of(
    queries: tuple[int, ...], seen: Seen, by_box: list[tuple[Box, Unmixed]], site: Site, rows: Sequence[int]
) -> tuple[int, ...] | None:
    """Return the form of a map in which disturbed boxes of the sample change their own places; None if there is none.

    Empty if the candidates are contradicted: the places are in another order. The picture's queries are a stretch
    without gaps. `rows` are those of one row of the input: several are frames.
    """
    if not queries or not by_box or queries[-1] - queries[0] + 1 != len(queries):
        return None
    own = list(rows) if rows else list(range(seen.query.shape[0]))
    ratios: dict[tuple[int, ...], float] = {}
    is_sharp = False
    for box, run in by_box:
        change = changed(run.attentions[site].query, seen.query)[own][:, list(queries)]
        for grid, covered in box.covers.items():
            inside = covered.flatten().to(change.device)
            frames = len(own) if len(grid) == 3 and len(own) > 1 else 1
            if len(inside) != frames * len(queries) or (frames > 1 and grid[0] != frames) or bool(inside.all()):
                continue
            by_place = change.flatten() if frames > 1 else change.sum(dim=0)
            outside = by_place[~inside].mean().clamp(min=1e-12)
            is_sharp |= float((by_place < 1e-3 * by_place.max()).float().mean()) > SHARP
            ratio = float(by_place[inside].mean() / outside)
            ratios[grid] = min(ratios.get(grid, math.inf), ratio)
    best = max(ratios, key=ratios.__getitem__) if ratios else None
    if best is None:
        return None
    if ratios[best] >= PROBED:
        return best
    return () if is_sharp else None


PROBED = 1.5
"""Least ratio of the change of queries inside a disturbed box to that outside, with which their order is confirmed."""
SHARP = 0.1
"""Share of queries that a disturbed box leaves alone, from which on a missed order is another order.

In a U-Net's deep layers everything changes with everything, and nothing is known of the order.
"""


def kept_random(tree: Tree) -> AbstractContextManager[None]:
    """Return a context that puts torch's random streams back, those of the arguments' devices among them."""
    kept: AbstractContextManager[None] = torch.random.fork_rng(devices=_gpus(tree))
    return kept


def _gpus(tree: Tree) -> list[int]:
    return sorted({tensor.device.index or 0 for tensor in leaves(tree).values() if tensor.device.type == "cuda"})
