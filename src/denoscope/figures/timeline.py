"""The moving picture of a run: its clean prediction step by step, with maps."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib import font_manager
from matplotlib.colors import Colormap
from PIL import Image, ImageDraw, ImageFont

from .clips import frames_of, is_clip, middle_frame, still, still_maps
from .overlays import grown, overlay, shrunk
from .results import clean_pictures, explained_steps, is_layered, layers
from .scales import Limits, colour_limits
from .theme import ACCENT, ALPHA, FAINT, FRAME_SIDE, INK, RULE, heading, shortened

SMALL_SIDE, SMALL_COLUMNS = 128, 6
"""Pixels of a small map, and how many small maps stand side by side."""


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
    frames = [_compact(drawn) for drawn in _frames(pictures, results, cmap, alpha, frame)]
    durations = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    encoded = io.BytesIO()
    frames[0].save(encoded, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    path.write_bytes(encoded.getvalue())
    return path


def _compact(frame: Image.Image) -> Image.Image:
    """Reduce to 256 colours without dithering, whose noise a GIF would have to store."""
    return frame.quantize(256, dither=Image.Dither.NONE)


class _Panel(NamedTuple):
    """A picture in a frame of the time line, with the title and note above it."""

    title: str
    note: str
    picture: np.ndarray


def _frames(
    pictures: xr.Dataset, results: Sequence[xr.Dataset], cmap: str | Colormap | None, alpha: float, frame: int | None
) -> Iterator[Image.Image]:
    """Yield a frame for every step: the large pictures first, and rows of small maps below."""
    steps = explained_steps(results[0]) if results else []
    scales, note = [colour_limits(result) for result in results], ""
    if is_clip(pictures):
        clip = middle_frame(frames_of(pictures), frame)
        note, pictures = str(clip), still(pictures, clip.index)
        results = [still_maps(result, clip.index, clip.frames) for result in results]
    for step in map(int, pictures["step"].values):
        picture = shrunk(clean_pictures(pictures).sel(step=step).values, FRAME_SIDE)
        large, small = grown(picture), grown(shrunk(picture, SMALL_SIDE), SMALL_SIDE)
        first, rows = [_Panel("clean prediction", note, large)], []
        for result, limits in zip(results, scales, strict=True):
            if is_layered(result):
                below = list(_panels(result, limits, step, small, cmap, alpha))
                rows += [below[i : i + SMALL_COLUMNS] for i in range(0, len(below), SMALL_COLUMNS)]
            else:
                first += list(_panels(result, limits, step, large, cmap, alpha))[:1]
        yield _frame(pictures, step, steps, [first, *rows])


def _panels(
    result: xr.Dataset, limits: Limits, step: int, picture: np.ndarray, cmap: str | Colormap | None, alpha: float
) -> Iterator[_Panel]:
    """Yield the maps of a result at the nearest explained step; none if no step was finished."""
    small = is_layered(result)
    for label, layer in layers(result):
        if not (steps := explained_steps(layer)):
            continue
        nearest = min(steps, key=lambda explained: abs(explained - step))
        note = "map of this step" if nearest == step else f"map of step {nearest}, the nearest explained"
        if small:
            note = "" if nearest == step else f"of step {nearest}"
        title = label if small else " · ".join(filter(None, [result.attrs.get("title", "heat map"), label]))
        heat = overlay(picture, layer["saliency"].sel(step=nearest).values, limits, cmap, alpha)
        yield _Panel(title, note, heat)


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


def _font(size: int) -> Any:
    """Return DejaVu Sans, which comes with matplotlib, so that frames look alike on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
