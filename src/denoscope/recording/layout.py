"""Where the numbers of a sample lie on the picture: unpacked or packed, with frames or without.

The number of positions and the picture's shape give the candidates; where more than one form is possible, a probe
decides: a box of positions is disturbed, and the picture has to change there and not elsewhere.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import torch

from ..errors import InputError
from ..figures.clips import map_frame

ORDERS = {
    2: ("pc", "cp"),
    3: ("cyx", "yxc"),
    4: ("cfyx", "fcyx", "fyxc", "yxfc"),
}
"""Orders of a sample's axes behind the first, by their number: channels, frames, rows, columns, packed positions."""
ROWS_ARE_FRAMES = "cyx"
PROBED = 1.2
"""Least ratio of the change inside a disturbed box to that outside, with which a layout is confirmed."""

LATER = 0.02
"""Least share of a clip by which its change has to move when its last frame is disturbed in place of its first."""


@dataclass(frozen=True)
class Layout:
    """The order of a sample's axes: `as_maps` brings samples to (n, channels, [frames,] h, w), `as_samples` back.

    `order` names the axes behind the first: c channels, f frames, y rows, x columns, p packed positions, of which
    frames change slowest and columns fastest. `unit` rows of a sample make one picture; where there are several, they
    are its frames. `frames` is None for pictures.
    """

    order: str
    grid: tuple[int, int]
    frames: int | None = None
    unit: int = 1

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the axes of a map: ("y", "x"), or ("frame", "y", "x")."""
        return ("y", "x") if self.frames is None else ("frame", "y", "x")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a map: (h, w), or (frames, h, w)."""
        return self.grid if self.frames is None else (self.frames, *self.grid)

    @property
    def positions(self) -> int:
        """The number of positions of a map."""
        return math.prod(self.shape)

    @property
    def is_identity(self) -> bool:
        """True if samples are maps already."""
        return self.unit == 1 and self.order == ("cyx" if self.frames is None else "cfyx")

    def as_maps(self, samples: torch.Tensor) -> torch.Tensor:
        """Return samples (n · unit, ...) as maps (n, channels, [frames,] h, w); differentiable.

        >>> Layout("pc", (2, 3)).as_maps(torch.arange(12.0).reshape(1, 6, 2))[0, 0]
        tensor([[ 0.,  2.,  4.],
                [ 6.,  8., 10.]])
        """
        if self.is_identity:
            return samples
        named, order = samples, self.order
        if self.unit > 1:
            named, order = samples.reshape(-1, self.unit, *samples.shape[1:]), "f" + order
        if "p" in order:
            place = 1 + order.index("p")
            named = named.reshape(*named.shape[:place], *self.shape, *named.shape[place + 1 :])
            order = order.replace("p", "yx" if self.frames is None else "fyx")
        if self.frames is None and "f" in order:  # one frame of a model of clips
            named, order = named.squeeze(1 + order.index("f")), order.replace("f", "")
        wanted = "cyx" if self.frames is None else "cfyx"
        return named.permute(0, *(1 + order.index(axis) for axis in wanted))

    def as_samples(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (n, channels, [frames,] h, w) as samples (n · unit, ...): the inverse of `as_maps`."""
        if self.is_identity:
            return maps
        wanted = "cyx" if self.frames is None else "cfyx"
        order = ("f" if self.unit > 1 else "") + self.order
        if self.frames is None and "f" in order:
            alone = replace(self, order=order.replace("f", ""))
            return alone.as_samples(maps).unsqueeze(1 + order.index("f"))
        unpacked = order.replace("p", "yx" if self.frames is None else "fyx")
        values = maps.permute(0, *(1 + wanted.index(axis) for axis in unpacked))
        if "p" in order:
            place = 1 + order.index("p")
            values = values.reshape(*values.shape[:place], self.positions, *values.shape[place + len(self.shape) :])
        return values.flatten(0, 1) if self.unit > 1 else values


def candidates(shape: Sequence[int], unit: int, picture: Sequence[int]) -> list[Layout]:
    """Return the layouts that rows of this shape may have for a picture (h, w), or a clip (frames, h, w)."""
    frames, (height, width) = (picture[0] if len(picture) == 3 else None), picture[-2:]
    found = []
    for order in (ROWS_ARE_FRAMES,) if unit > 1 else ORDERS.get(len(shape), ()):
        if "p" in order:
            found += _packed(order, shape[order.index("p")], frames, height, width)
            continue
        h, w = shape[order.index("y")], shape[order.index("x")]
        count = unit if unit > 1 else shape[order.index("f")] if "f" in order else None
        if count is not None and frames is None:
            if count > 1:
                continue
            count = None
        if _in_proportion(h, w, height, width) and (count is None or unit > 1 or _in_time(count, frames or 1)):
            found.append(Layout(order, (h, w), count, unit))
    return found


def _packed(order: str, positions: int, frames: int | None, height: int, width: int) -> list[Layout]:
    """Return the layouts of packed positions, of whole rows with the picture's proportions."""
    layouts = []
    for count in range(1, (frames or 1) + 1):
        places = positions // count
        if positions % count or not _in_time(count, frames or 1):
            continue
        for h in range(1, places + 1):
            if places % h == 0 and h * width == (places // h) * height:
                layouts.append(Layout(order, (h, places // h), None if frames is None else count))
    return layouts


def _in_time(frames: int, pictures: int) -> bool:
    """Return True if frames of a sample can make so many pictures: r · frames or 1 + r (frames − 1), r up to 16."""
    return any(pictures in (ratio * frames, 1 + ratio * (frames - 1)) for ratio in range(1, 17))


def _in_proportion(h: int, w: int, height: int, width: int) -> bool:
    """Return True if a grid has the picture's proportions exactly: a view of a panorama nearly has."""
    return h <= height and w <= width and h * width == w * height


def measured(
    sample: torch.Tensor,
    unit: int,
    picture: Sequence[int],
    decode: Callable[[torch.Tensor], torch.Tensor],
    *,
    trusted: bool = True,
) -> Layout:
    """Return the layout of a sample of one picture; raises `InputError` if none is confirmed.

    `picture` is (h, w), or (frames, h, w). `decode` turns samples into pictures. Unpacked samples with rows and columns
    last, or of which one order of axes alone has the picture's proportions, need no probe, unless they are not
    `trusted` to be the whole picture: a panorama is sampled view by view.
    """
    found = candidates(sample.shape[1:], unit, picture)
    plain = [layout for layout in found if layout.order == "cyx"]
    if trusted and (plain or (len(found) == 1 and "p" not in found[0].order)):
        return plain[0] if plain else found[0]
    if len({layout.frames for layout in found}) > 1:
        in_time = {layout: _later(layout, sample, decode) for layout in found}
        best_in_time = max(in_time.values())
        found = [layout for layout in found if in_time[layout] >= max(best_in_time / 2, LATER)]
    scores = {layout: _probed(layout, sample, picture, decode) for layout in found}
    best = max(scores, key=scores.__getitem__, default=None)
    if best is None or not scores[best] >= PROBED:
        raise InputError(
            f"The samples of this run, {tuple(sample.shape)} for {' × '.join(map(str, picture))} pixels, have no known "
            "place on the picture: no order of their positions is one in which a disturbed place of the sample "
            "changes that place of the picture. Methods that make maps need one. A picture that the pipeline crops or "
            "resizes has none: switch that off where it can be, as with use_resolution_binning=False."
        )
    return best


@torch.no_grad()
def _probed(
    layout: Layout, sample: torch.Tensor, picture: Sequence[int], decode: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Return the ratio of the picture's change inside disturbed boxes to that outside, the smallest of two boxes."""
    maps, before = layout.as_maps(sample), decode(sample)
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(9)).to(maps)
    spread = 3 * maps.float().std().clamp(min=1e-3).to(maps)
    ratios: list[float] = []
    for box in _boxes(layout.grid):
        changed = maps.clone()
        changed[(..., *box)] += spread * noise[(..., *box)]
        change = (decode(layout.as_samples(changed)) - before).abs().float().mean(dim=tuple(range(before.ndim - 2)))
        if not float(change.max()) > 1e-5:  # the pipeline writes over this place of the picture
            continue
        inside = torch.zeros_like(change, dtype=torch.bool)
        inside[_in_pixels(box, layout.grid, change.shape)] = True
        outside = change[~inside].mean() if bool((~inside).any()) else change.mean()
        ratios.append(float(change[inside].mean() / outside.clamp(min=1e-12)))
        if len(ratios) == 2:
            break
    return min(ratios, default=0.0)


@torch.no_grad()
def _later(layout: Layout, sample: torch.Tensor, decode: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return how much later a clip changes if its last frame is disturbed than if its first is, in clips."""
    maps, before = layout.as_maps(sample), decode(sample)
    if before.ndim != 5 or layout.frames in (None, 1):
        return 0.0
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(9)).to(maps)
    times = []
    for frame in (0, -1):
        changed = maps.clone()
        changed[:, :, frame] += 3 * maps.float().std().clamp(min=1e-3).to(maps) * noise[:, :, frame]
        change = (decode(layout.as_samples(changed)) - before).abs().float().mean(dim=(0, 1, 3, 4))
        places = torch.arange(len(change), device=change.device) / len(change)
        times.append(float((change * places).sum() / change.sum().clamp(min=1e-12)))
    return times[1] - times[0]


def _boxes(grid: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the ninths of a grid, corners that no exchange of rows and columns leaves in their place first."""
    thirds = [sorted({0, max(1, side // 3), max(1, side - side // 3), side}) for side in grid]
    rows, columns = ([slice(a, b) for a, b in pairwise(edges)] for edges in thirds)
    corners = [(rows[0], columns[-1]), (rows[-1], columns[0])]
    yield from corners
    yield from (box for box in product(rows, columns) if box not in corners)


def _in_pixels(box: Sequence[slice], grid: Sequence[int], pixels: Sequence[int]) -> tuple[slice, ...]:
    """Return the box of a map in the pixels of a picture."""
    parts = zip(box, grid, pixels, strict=True)
    return tuple(slice(part.start * total // size, math.ceil(part.stop * total / size)) for part, size, total in parts)


def picture_frames(part: slice, frames: int, pictures: int) -> slice:
    """Return the pictures that frames of a sample belong to; see `figures.clips.map_frame`.

    >>> picture_frames(slice(1, 2), 2, 5), picture_frames(slice(1, 2), 2, 8)
    (slice(1, 5, None), slice(4, 8, None))
    """
    belonging = [i for i in range(pictures) if part.start <= map_frame(i, frames, pictures) < part.stop]
    return slice(belonging[0], belonging[-1] + 1) if belonging else slice(0, 0)


# Grids of patches, in which networks see a map.


def halved(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return a grid, and the grids that remain when its sides are halved again and again, rounding up.

    >>> halved((3, 4))
    [(3, 4), (2, 2), (1, 1)]
    """
    *frames, height, width = shape
    factors = [2**i for i in range(max(height, width).bit_length())]
    return [(*frames, math.ceil(height / f), math.ceil(width / f)) for f in factors]


def reduced(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the grids of patches that a map may be cut into: whole, halved, and each side by a divisor of both."""
    *frames, height, width = shape
    sides = [(height // f, width // f) for f in range(1, min(height, width) + 1) if height % f == 0 == width % f]
    counts: list[tuple[int, ...]] = [(n // f,) for n in frames for f in range(1, n + 1) if n % f == 0] or [()]
    return list(dict.fromkeys([*halved(shape), *((*count, *side) for count, side in product(counts, sides))]))


def inside_box(box: Sequence[slice], shape: Sequence[int], grid: Sequence[int]) -> torch.Tensor:
    """Return the box of a map in a coarser grid, as a mask of the grid's shape."""
    inside = torch.zeros(tuple(grid), dtype=torch.bool)
    ends = [math.ceil(part.stop * size / side) for part, size, side in zip(box, grid, shape, strict=True)]
    inside[tuple(slice(0, end) for end in ends)] = True
    return inside
