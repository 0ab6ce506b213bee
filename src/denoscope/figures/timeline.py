"""The moving picture of a run: its clean prediction step by step, with maps."""

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib import font_manager
from matplotlib.colors import Colormap
from PIL import Image, ImageDraw, ImageFont

from .clips import frames_of, is_clip, middle_frame, still, still_maps
from .overlays import Heat, coloured, grey, grown, laid_over, shrunk
from .results import clean_pictures, explained_steps, is_layered, layers
from .scales import Limits, colour_limits
from .theme import ACCENT, ALPHA, FAINT, FRAME_SIDE, INK, RULE, heading, shortened

SMALL_SIDE, SMALL_COLUMNS = 128, 6
"""Pixels of a small map, and how many small maps stand side by side."""
PALETTE_SIDE = 1024
"""Pixels of the side of the square, of all frames together, from which the 256 colours are chosen."""
NEARLY_WHITE = 247
"""The least red, green and blue of a colour that is shown as white.

Pillow looks colours up by their upper six bits: for white it seeks the colour nearest to 252, 252, 252.
"""


def timeline_gif(
    path: str | os.PathLike[str],
    pictures: xr.Dataset,
    *results: xr.Dataset,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
    milliseconds: int = 320,
    frame: int | None = None,
) -> Path:
    """Write the clean prediction step by step, beside it the maps, as a looping GIF at least 256 px high or wide.

    A result with a further dimension, such as `token`, has a small map for each entry below. A step that was not
    explained shows the map of the nearest explained step, and the frame says so. Of a clip it is one frame: `frame`,
    or the middle one. The file appears whole or not at all.
    """
    path = Path(path)
    frames = _compact(_frames(pictures, results, cmap, alpha, frame))
    durations = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    encoded = io.BytesIO()
    frames[0].save(encoded, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    path.write_bytes(encoded.getvalue())
    return path


def _compact(frames: Iterable[Image.Image]) -> list[Image.Image]:
    """Reduce frames to one palette of 256 colours without dithering, whose noise a GIF would have to store.

    The palette is that of every frame's thumbnail together, with the paper's white: it is searched for once, and not
    for every frame.
    """
    frames = list(frames)
    side = max(1, int(PALETTE_SIDE / math.sqrt(len(frames))))
    sheet = Image.new("RGB", (side, side * len(frames)))
    for i, frame in enumerate(frames):
        sheet.paste(frame.resize((side, side), Image.Resampling.NEAREST), (0, i * side))
    palette = sheet.quantize(255, dither=Image.Dither.NONE)
    colours = np.full((256, 3), 255, np.uint8)
    found = np.reshape(palette.getpalette() or [], (-1, 3))[:255]
    colours[: len(found)] = np.where((found >= NEARLY_WHITE).all(axis=1, keepdims=True), 255, found)
    palette.putpalette(colours.ravel().tolist())
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


class _Panel(NamedTuple):
    """A picture in a frame of the time line, with the title and note above it."""

    title: str
    note: str
    picture: np.ndarray


class _Layer(NamedTuple):
    """The maps of one entry of a result: the title, a colour for every cell by explained step, and their size."""

    title: str
    small: bool
    heats: dict[int, Heat | None]

    def panel(self, step: int, picture: np.ndarray, grey_picture: np.ndarray, alpha: float) -> _Panel:
        """Return the map of the nearest explained step over the picture of a step."""
        nearest = min(self.heats, key=lambda explained: abs(explained - step))
        note = "map of this step" if nearest == step else f"map of step {nearest}, the nearest explained"
        if self.small:
            note = "" if nearest == step else f"of step {nearest}"
        return _Panel(self.title, note, laid_over(picture, self.heats[nearest], alpha, grey_picture))


def _frames(
    pictures: xr.Dataset, results: Sequence[xr.Dataset], cmap: str | Colormap | None, alpha: float, frame: int | None
) -> Iterator[Image.Image]:
    """Yield a frame for every step: the large pictures first, and rows of small maps below.

    The maps are coloured once, and laid over the picture of each step.
    """
    steps = explained_steps(results[0]) if results else []
    scales, note = [colour_limits(result) for result in results], ""
    if is_clip(pictures):
        clip = middle_frame(frames_of(pictures), frame)
        note, pictures = str(clip), still(pictures, clip.index)
        results = [still_maps(result, clip.index, clip.frames) for result in results]
    clean = clean_pictures(pictures)
    sizes = [picture.shape[:2] for picture in _both_sizes(clean[0].values)]
    shown = [
        list(_layers(result, limits, sizes[is_layered(result)], cmap))
        for result, limits in zip(results, scales, strict=True)
    ]
    for step in map(int, pictures["step"].values):
        beneath = [(picture, grey(picture)) for picture in _both_sizes(clean.sel(step=step).values)]
        first, rows = [_Panel("clean prediction", note, beneath[0][0])], []
        for of_result in shown:
            panels = [layer.panel(step, *beneath[layer.small], alpha) for layer in of_result]
            if of_result and of_result[0].small:
                rows += [panels[i : i + SMALL_COLUMNS] for i in range(0, len(panels), SMALL_COLUMNS)]
            else:
                first += panels[:1]
        yield _frame(pictures, step, steps, [first, *rows])


def _both_sizes(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture as the large and as the small maps lie over it."""
    picture = shrunk(picture, FRAME_SIDE)
    return grown(picture), grown(shrunk(picture, SMALL_SIDE), SMALL_SIDE)


def _layers(result: xr.Dataset, limits: Limits, size: tuple[int, int], cmap: str | Colormap | None) -> Iterator[_Layer]:
    """Yield the maps of each entry of a result in colours; none of an entry without a finished step."""
    small = is_layered(result)
    for label, layer in layers(result):
        maps = {step: layer["saliency"].sel(step=step).values for step in explained_steps(layer)}
        title = label if small else " · ".join(filter(None, [result.attrs.get("title", "heat map"), label]))
        if maps:
            heats = {step: coloured(values, size, limits, cmap) for step, values in maps.items()}
            yield _Layer(title, small, heats)


def _frame(pictures: xr.Dataset, step: int, marked: list[int], rows: Sequence[Sequence[_Panel]]) -> Image.Image:
    """Draw one frame of the time line: titled pictures in rows, and below them the place in the run."""
    margin, head, foot = 16, 46, 50
    columns = [max(row[0].picture.shape[1], 256 if row is rows[0] else SMALL_SIDE) for row in rows]
    heights = [head + row[0].picture.shape[0] for row in rows]
    width = max(len(row) * (column + margin) for row, column in zip(rows, columns, strict=True))
    frame = Image.new("RGB", (width + margin, sum(heights) + foot), "white")
    draw, top = ImageDraw.Draw(frame), 0
    for row, column, height in zip(rows, columns, heights, strict=True):
        for i, panel in enumerate(row):
            left = margin + i * (column + margin)
            draw.text((left, top + 9), shortened(panel.title, column // 8), font=_font(13), fill=INK)
            draw.text((left, top + 27), panel.note, font=_font(10), fill=FAINT)
            frame.paste(Image.fromarray(panel.picture), (left, top + head))
        top += height
    draw.text((margin, top + 10), heading(pictures, step).replace("\n", "   "), font=_font(12), fill=INK)
    _draw_progress(draw, pictures, step, marked, (margin, frame.width - margin, top + 35))
    return frame


def _draw_progress(
    draw: ImageDraw.ImageDraw, pictures: xr.Dataset, step: int, marked: list[int], where: tuple[int, int, int]
) -> None:
    """Draw a line for the run, a tick for each explained step, and a dot for this step."""
    left, right, y = where
    first, last = int(pictures["step"].values[0]), int(pictures["step"].values[-1])

    def x(index: int) -> float:
        return left + (right - left) * (index - first) / max(1, last - first)

    draw.line((left, y, right, y), fill=RULE, width=3)
    for index in marked:
        draw.line((x(index), y - 5, x(index), y + 5), fill=FAINT, width=2)
    draw.circle((x(step), y), 5, fill=ACCENT)


@lru_cache
def _font(size: int) -> Any:
    """Return DejaVu Sans, which comes with matplotlib, so that frames look alike on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
