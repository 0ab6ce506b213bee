"""The figure of a method's result: samples, clean predictions, and the maps over them.

A heat map lies over the picture in grey. Every colour therefore belongs to the map and can be looked up in the colour
bar. Values stay raw: only the limits of the colour scale are chosen here, and they are printed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from .clips import ChosenFrame, chosen_frame, frames_of, is_clip, still, still_maps, strip_frames
from .layout import Sheet
from .overlays import overlay, shrunk
from .results import clean_pictures, explained_steps, is_layered, layers
from .scales import Limits, colour_limits, error_limits
from .theme import ALPHA, ERROR, FAINT, FIGURE_SIDE, INK, bare, heading, readable, shortened

PICTURE_GAP = 0.08
"""Inches between two pictures."""
BAR_WIDTH = 0.1
"""Inches of a colour bar."""
INWARD: tuple[Literal["bottom", "center", "top"], ...] = ("bottom", "center", "top")
"""Alignment of the labels of a colour bar, from its low end, so that the ends stay inside."""


@dataclass(frozen=True)
class RowStyle:
    """The options of a figure of maps: one colour scale for all steps or not, colour map, opacity."""

    shared_scale: bool
    cmap: str | Colormap | None
    alpha: float


class Row(NamedTuple):
    """One row of the figure: its label, (row, column, 3) pictures by column, and its colour scale if any."""

    label: str
    pictures: dict[int, np.ndarray]
    limits: Limits | None = None
    cmap: Colormap | None = None


def plot_method(
    pictures: xr.Dataset,
    result: xr.Dataset,
    *,
    shared_scale: bool = True,
    frame: int | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Figure:
    """Draw a column per explained step; rows: sample, clean prediction, heat map over it, standard error if any.

    A result with a further dimension, such as `token`, has a row per explained step and a column for each entry. Of a
    clip one frame is drawn: `frame`, or the frame with the largest map mass. The heat maps of at most five frames stand
    below one another where there is no further dimension.
    """
    look = RowStyle(shared_scale, cmap, alpha)
    clip = chosen_frame(frames_of(pictures), [result], frame) if is_clip(pictures) else None
    if is_layered(result):
        return _plot_layers(pictures, result, look, clip)
    return _plot_steps(pictures, result, look, clip)


def _plot_steps(pictures: xr.Dataset, result: xr.Dataset, look: RowStyle, clip: ChosenFrame | None) -> Figure:
    """Draw the figure whose columns are steps."""
    steps = explained_steps(result)
    rows = list(_rows(pictures, result, look, clip))
    width, height = _cell_size(still(pictures), 1.5)
    left, top = (0.5, 1.2) if clip else (0.35, 1.05)
    sheet = _sheet(len(rows), max(1, len(steps)), width, height, left=left, top=top)
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, row in enumerate(rows):
        _draw_row(figure, sheet, number, steps, row)
    for column, step in enumerate(steps):
        _draw_head(figure, sheet, column, heading(pictures, step), above=0.01)
    _draw_caption(figure, sheet, _caption(result, steps, look.shared_scale, clip))
    return figure


def _plot_layers(pictures: xr.Dataset, result: xr.Dataset, look: RowStyle, clip: ChosenFrame | None) -> Figure:
    """Draw a row per explained step; columns: clean prediction, then the map of each entry of the further dimension."""
    steps, names = explained_steps(result), ["clean prediction", *(label for label, _ in layers(result))]
    side = 1.5 if len(names) <= 8 else 1.1
    width, height = _cell_size(still(pictures), side)
    sheet = _sheet(max(1, len(steps)), len(names), width, height, left=0.65, top=0.95 if clip else 0.8)
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, step in enumerate(steps):
        _draw_row(figure, sheet, number, range(len(names)), _layers_row(pictures, result, step, look, clip))
    for column, name in enumerate(names):
        _draw_head(figure, sheet, column, shortened(name, int(15 * side)), above=0.06 / sheet.size[1])
    _draw_caption(figure, sheet, _caption(result, steps, look.shared_scale, clip))
    return figure


def _cell_size(pictures: xr.Dataset, side: float) -> tuple[float, float]:
    """Return the width and height in inches of a cell whose longer side is `side`."""
    height, width = clean_pictures(pictures).shape[1:3]
    longer = max(height, width)
    return side * width / longer, side * height / longer


def _sheet(rows: int, columns: int, width: float, height: float, left: float, top: float) -> Sheet:
    """Return the sheet, in inches; the column after the last is the colour bar's."""
    return Sheet(
        rows,
        columns,
        width,
        height,
        PICTURE_GAP,
        left=left,
        bottom=0.15 + PICTURE_GAP,
        right=0.95 + PICTURE_GAP,
        top=top,
        least_width=4.0,
    )


def _layers_row(pictures: xr.Dataset, result: xr.Dataset, step: int, look: RowStyle, clip: ChosenFrame | None) -> Row:
    """Return one step: the clean prediction, and over it each entry's map, all on one scale."""
    shown, limits = _shown(pictures, result, clip.index if clip else None), colour_limits(result)
    clean = shrunk(clean_pictures(shown.pictures).sel(step=step).values, FIGURE_SIDE)
    if not look.shared_scale:
        limits = colour_limits(result.sel(step=step), signed=limits.signed)
    maps = [layer["saliency"].sel(step=step).values for _, layer in layers(shown.result)]
    heat = [overlay(clean, saliency, limits, look.cmap, look.alpha) for saliency in maps]
    return Row(heading(pictures, step), dict(enumerate([clean, *heat])), limits, limits.cmap(look.cmap))


class _Shown(NamedTuple):
    """The pictures and maps of one frame of a clip with the frame's name, or those of a picture."""

    pictures: xr.Dataset
    result: xr.Dataset
    name: str = ""

    def label(self, text: str) -> str:
        """Return a row's label, with the frame's name below."""
        return f"{text}\n{self.name}" if self.name else text


def _shown(pictures: xr.Dataset, result: xr.Dataset, frame: int | None) -> _Shown:
    """Return one frame of a clip; for None the pictures and maps as they are."""
    if frame is None:
        return _Shown(pictures, result)
    return _Shown(still(pictures, frame), still_maps(result, frame, frames_of(pictures)), f"frame {frame}")


def _rows(pictures: xr.Dataset, result: xr.Dataset, look: RowStyle, clip: ChosenFrame | None) -> Iterator[Row]:
    """Yield the rows of the figure whose columns are steps; of a clip, a heat map for each of a few frames."""
    steps, limits = explained_steps(result), colour_limits(result)
    shown = _shown(pictures, result, clip.index if clip else None)
    yield Row(shown.label("sample"), _thumbnails(shown.pictures["sample"], steps))
    yield Row(shown.label("clean prediction"), _thumbnails(clean_pictures(shown.pictures), steps))
    for label, layer in layers(result):
        scales = dict.fromkeys(steps, limits)
        if not look.shared_scale:
            scales = {step: colour_limits(layer.sel(step=step), signed=limits.signed) for step in steps}
        for frame in strip_frames(clip) if clip else [None]:
            of_frame = _shown(pictures, layer, frame)
            heat = _heat(of_frame, scales, look)
            bar = limits if look.shared_scale else None
            yield Row(of_frame.label(label or "heat map"), heat, bar, limits.cmap(look.cmap))
        if "standard_error" in layer:
            of_frame = _shown(pictures, layer, clip.index if clip else None)
            yield _error_row(of_frame, steps, error_limits(result))


def _heat(shown: _Shown, scales: Mapping[int, Limits], look: RowStyle) -> dict[int, np.ndarray]:
    """Return the map of each step over its clean prediction."""
    heat = {}
    for step, clean in _thumbnails(clean_pictures(shown.pictures), list(scales)).items():
        saliency = shown.result["saliency"].sel(step=step).values
        heat[step] = overlay(clean, saliency, scales[step], look.cmap, look.alpha)
    return heat


def _thumbnails(pictures: xr.DataArray, steps: Sequence[int]) -> dict[int, np.ndarray]:
    """Return the pictures of the steps, at most FIGURE_SIDE pixels wide and high."""
    return {step: shrunk(pictures.sel(step=step).values, FIGURE_SIDE) for step in steps}


def _error_row(shown: _Shown, steps: list[int], limits: Limits) -> Row:
    """Return the standard error cell by cell, not smoothed: its grain is that of the latent grid."""
    scale = ScalarMappable(Normalize(limits.low, limits.high), limits.cmap(ERROR))
    errors = {step: shown.result["standard_error"].sel(step=step).values for step in steps}
    colours = {step: scale.to_rgba(values, bytes=True)[..., :3] for step, values in errors.items()}
    return Row(shown.label("standard error"), colours, limits, limits.cmap(ERROR))


def _draw_row(figure: Figure, sheet: Sheet, number: int, columns: Sequence[int], row: Row) -> None:
    """Draw the pictures of a row, its label, and its colour bar if it has one scale."""
    axes = [bare(figure.add_axes(sheet.box(number, column))) for column in range(sheet.columns)]
    for ax, column in zip(axes, columns, strict=False):
        ax.imshow(row.pictures[column], interpolation="nearest", aspect="auto")
    axes[0].set_ylabel(row.label, fontsize=8, color=INK)
    if row.limits and columns:
        draw_bar(figure, figure.add_axes(sheet.box(number, sheet.columns, BAR_WIDTH)), row.limits, row.cmap)


def _draw_head(figure: Figure, sheet: Sheet, column: int, text: str, above: float) -> None:
    """Write a text above a column, `above` its first picture as a fraction of the figure's height."""
    x, y, across, up = sheet.box(0, column)
    figure.text(x + across / 2, y + up + above, text, fontsize=8, color=INK, ha="center", va="bottom")


def _draw_caption(figure: Figure, sheet: Sheet, text: str) -> None:
    """Write the caption into the upper left corner."""
    figure.text(sheet.box(0, 0)[0], 1 - 0.1 / sheet.size[1], text, fontsize=9, color=INK, va="top")


def draw_bar(figure: Figure, ax: Axes, limits: Limits, cmap: Colormap | None) -> None:
    """Draw a colour bar that names its two ends and its middle; the bar of a flat map names nothing."""
    low, high, _ = limits
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=ax, format=lambda value, _: readable(value))
    bar.set_ticks([] if limits.flat else [low, (low + high) / 2, high])
    bar.ax.tick_params(labelsize=7, length=2, color=FAINT, labelcolor=INK)
    for label, side in zip(bar.ax.get_yticklabels(), INWARD, strict=False):
        label.set_verticalalignment(side)  # clear of the next row's bar
    bar.ax.spines[:].set_visible(False)


def _caption(result: xr.Dataset, steps: list[int], shared: bool, clip: ChosenFrame | None) -> str:
    """Return the result's title, the frame of a clip, and a line about its colour scale."""
    title = result.attrs.get("title", "Saliency")
    if not steps:
        return f"{title}: no step was finished"
    if colour_limits(result).flat:
        return f"{title}: flat, nothing is shown over the pictures"
    scale = "one colour scale, shared by all steps" if shared else "each step has its own colour scale"
    if clip is None:
        return f"{title}\n{scale}"
    return f"{title}\n{clip}\n{scale.replace('steps', 'steps and frames')}"
