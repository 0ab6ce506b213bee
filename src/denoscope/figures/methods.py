"""Still and moving pictures of an explanation, drawn from labelled arrays with matplotlib and Pillow.

A heat map lies over the picture in grey, so that every colour on it belongs to the map and can be looked up
in the colour bar. Raw values stay raw: only the limits of the colour scale are chosen here, and they are printed."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from .overlays import overlay, shrunk
from .results import clean_pictures, explained_steps, is_layered, layers
from .scales import Limits, colour_limits, error_limits
from .theme import ALPHA, ERROR, FAINT, FIGURE_SIDE, INK, bare, heading, readable, shortened

SMALL_SIDE, SMALL_COLUMNS = 128, 6  # of the time line's small maps: pixels of one, and how many stand side by side
INWARD: tuple[Literal["bottom", "center", "top"], ...] = ("bottom", "center", "top")


def plot_method(
    pictures: xr.Dataset,
    result: xr.Dataset,
    *,
    shared_scale: bool = True,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Figure:
    """One column per explained step; rows: sample, clean prediction, heat map over it, standard error where known.

    A method with a further dimension, such as `token`, has a row per explained step and a column for each entry.
    """
    if is_layered(result):
        return _plot_layers(pictures, result, shared_scale, cmap, alpha)
    steps = explained_steps(result)
    rows = list(_rows(pictures, result, shared_scale, cmap, alpha))
    height, width = clean_pictures(pictures).shape[1:3]
    sheet = _Sheet(len(rows), max(1, len(steps)), 1.5 * width / max(height, width), 1.5 * height / max(height, width))
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, row in enumerate(rows):
        _draw_row(figure, sheet, number, steps, row)
    for column, step in enumerate(steps):
        x, y, across, up = sheet.box(0, column)
        figure.text(
            x + across / 2, y + up + 0.01, heading(pictures, step), fontsize=8, color=INK, ha="center", va="bottom"
        )
    left = sheet.box(0, 0)[0]
    figure.text(left, 1 - 0.1 / sheet.size[1], _caption(result, steps, shared_scale), fontsize=9, color=INK, va="top")
    return figure


def _plot_layers(
    pictures: xr.Dataset, result: xr.Dataset, shared: bool, cmap: str | Colormap | None, alpha: float
) -> Figure:
    """A row per explained step; columns: clean prediction, then the heat map of each entry of the further dimension."""
    steps, names = explained_steps(result), ["clean prediction", *(label for label, _ in layers(result))]
    height, width = clean_pictures(pictures).shape[1:3]
    side = 1.5 if len(names) <= 8 else 1.1
    across, up = side * width / max(height, width), side * height / max(height, width)
    sheet = _Sheet(max(1, len(steps)), len(names), across, up, margins=(0.65, 0.15, 0.95, 0.8))
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, step in enumerate(steps):
        _draw_row(figure, sheet, number, range(len(names)), _layers_row(pictures, result, step, shared, cmap, alpha))
    for column, name in enumerate(names):
        x, y, across, up = sheet.box(0, column)
        name, place = shortened(name, int(15 * side)), (x + across / 2, y + up + 0.06 / sheet.size[1])
        figure.text(*place, name, fontsize=8, color=INK, ha="center", va="bottom")
    left = sheet.box(0, 0)[0]
    figure.text(left, 1 - 0.1 / sheet.size[1], _caption(result, steps, shared), fontsize=9, color=INK, va="top")
    return figure


def _layers_row(
    pictures: xr.Dataset, result: xr.Dataset, step: int, shared: bool, cmap: str | Colormap | None, alpha: float
) -> "_Row":
    """One step: the clean prediction, and over it each entry's map, all on one scale."""
    clean, limits = shrunk(clean_pictures(pictures).sel(step=step).values, FIGURE_SIDE), colour_limits(result)
    own = limits if shared else colour_limits(result.sel(step=step), signed=limits.signed)
    maps = [layer["saliency"].sel(step=step).values for _, layer in layers(result)]
    overlays = [overlay(clean, saliency, own, cmap, alpha) for saliency in maps]
    return _Row(heading(pictures, step), dict(enumerate([clean, *overlays])), own, limits.cmap(cmap))


class _Sheet(NamedTuple):
    """Where pictures go, in inches: equal cells in straight columns, whether or not a row has a colour bar."""

    rows: int
    columns: int
    width: float
    height: float
    gap: float = 0.08
    margins: tuple[float, float, float, float] = (0.35, 0.15, 0.95, 1.05)  # left, bottom, right, top

    @property
    def size(self) -> tuple[float, float]:
        left, bottom, right, top = self.margins
        across = left + self.columns * (self.width + self.gap) + right
        return max(4.0, across), bottom + self.rows * (self.height + self.gap) + top

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height as fractions of the figure; the column after the last is the colour bar's."""
        x = self.margins[0] + column * (self.width + self.gap)
        y = self.size[1] - self.margins[3] - row * (self.height + self.gap) - self.height
        width = 0.1 if column == self.columns else self.width
        return x / self.size[0], y / self.size[1], width / self.size[0], self.height / self.size[1]


class _Row(NamedTuple):
    """One row of a method's figure: its label, (rows, columns, 3) pictures by column, and its colour scale if any."""

    label: str
    pictures: dict[int, np.ndarray]
    limits: Limits | None = None
    cmap: Colormap | None = None


def _rows(
    pictures: xr.Dataset, result: xr.Dataset, shared: bool, cmap: str | Colormap | None, alpha: float
) -> Iterator[_Row]:
    steps, limits = explained_steps(result), colour_limits(result)
    samples = _thumbnails(pictures["sample"], steps)
    clean = _thumbnails(clean_pictures(pictures), steps)
    yield _Row("sample", samples)
    yield _Row("clean prediction", clean)
    for label, layer in layers(result):
        maps = {step: layer.sel(step=step) for step in steps}
        own = {step: limits if shared else colour_limits(maps[step], signed=limits.signed) for step in steps}
        heat = {step: overlay(clean[step], maps[step]["saliency"].values, own[step], cmap, alpha) for step in steps}
        yield _Row(label or "heat map", heat, limits if shared else None, limits.cmap(cmap))
        if "standard_error" in layer:
            yield _error_row(layer, steps, error_limits(result))


def _thumbnails(pictures: xr.DataArray, steps: Sequence[int]) -> dict[int, np.ndarray]:
    """Return the pictures of the steps, at most FIGURE_SIDE pixels wide and high."""
    return {step: shrunk(pictures.sel(step=step).values, FIGURE_SIDE) for step in steps}


def _error_row(layer: xr.Dataset, steps: list[int], limits: Limits) -> _Row:
    """The standard error cell by cell, not smoothed: its grain is that of the latent grid."""
    scale = ScalarMappable(Normalize(limits.low, limits.high), limits.cmap(ERROR))
    pictures = {
        step: scale.to_rgba(layer["standard_error"].sel(step=step).values, bytes=True)[..., :3] for step in steps
    }
    return _Row("standard error", pictures, limits, limits.cmap(ERROR))


def _draw_row(figure: Figure, sheet: _Sheet, number: int, columns: Sequence[int], row: _Row) -> None:
    axes = [bare(figure.add_axes(sheet.box(number, column))) for column in range(sheet.columns)]
    for ax, column in zip(axes, columns, strict=False):
        ax.imshow(row.pictures[column], interpolation="nearest", aspect="auto")
    axes[0].set_ylabel(row.label, fontsize=8, color=INK)
    if row.limits and columns:
        _draw_bar(figure, figure.add_axes(sheet.box(number, sheet.columns)), row.limits, row.cmap)


def _draw_bar(figure: Figure, ax: Axes, limits: Limits, cmap: Colormap | None) -> None:
    """A colour bar that names its two ends and its middle; a flat map has nothing to name."""
    low, high, _ = limits
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=ax, format=lambda value, _: readable(value))
    bar.set_ticks([] if limits.flat else [low, (low + high) / 2, high])
    bar.ax.tick_params(labelsize=7, length=2, color=FAINT, labelcolor=INK)
    for label, side in zip(bar.ax.get_yticklabels(), INWARD, strict=False):
        label.set_verticalalignment(side)  # the ends stay inside, clear of the next row's bar
    bar.ax.spines[:].set_visible(False)


def _caption(result: xr.Dataset, steps: list[int], shared: bool) -> str:
    title = result.attrs.get("title", "Saliency")
    if not steps:
        return f"{title}: no step was finished"
    if colour_limits(result).flat:
        return f"{title}: flat, nothing is shown over the pictures"
    return f"{title}\n{'one colour scale, shared by all steps' if shared else 'each step has its own colour scale'}"
