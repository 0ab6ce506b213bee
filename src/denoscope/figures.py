"""Still and moving pictures of an explanation, drawn from labelled arrays with matplotlib and Pillow.

A heat map lies over the picture in grey, so that every colour on it belongs to the map and can be looked up
in the colour bar. Raw values stay raw: only the limits of the colour scale are chosen here, and they are printed.
"""

import math
import os
import secrets
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

SEQUENTIAL, DIVERGING, ERROR = "inferno", "RdBu_r", "Purples"
ALPHA = 0.7
RELIABLE = 0.8
FIGURE_SIDE, FRAME_SIDE = 256, 512  # pixels of one picture in a figure and in the time line, at most
SMALL_SIDE, SMALL_COLUMNS = 128, 6  # of the time line's small maps: pixels of one, and how many stand side by side
INWARD: tuple[Literal["bottom", "center", "top"], ...] = ("bottom", "center", "top")
INK, FAINT, RULE, ACCENT = "#1b1f24", "#68717d", "#dfe3e8", "#3a5bc7"
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito (2008), of lines: told apart with any colour vision, on light and on dark ground."""
OUTLIER_PERC = 5
"""What a clipped colour scale leaves beyond its end, in per cent of the summed magnitude; see `outlier_scale`."""


class Limits(NamedTuple):
    """The raw values at the two ends of a colour scale; equal ends mean that there is nothing to show.

    On a signed scale zero is the middle, and the two signs have different hues.
    """

    low: float
    high: float
    signed: bool = False

    @property
    def flat(self) -> bool:
        return self.low == self.high

    def cmap(self, given: str | Colormap | None = None) -> Colormap:
        """The colour map asked for, or the one that suits the signs of the values."""
        return matplotlib.colormaps.get_cmap(given or (DIVERGING if self.signed else SEQUENTIAL))


def colour_limits(method: xr.Dataset, signed: bool | None = None) -> Limits:
    """The limits one colour scale needs for all the maps given: choose the steps to choose what is shared.

    `colour_limits(method)` is shared by all steps, `colour_limits(method.sel(step=8))` is that step's own. A scale is
    signed when it is asked to be, else as the method's attribute `signed` says, else when a value is negative.
    """
    values = method["saliency"].values
    values = values[np.isfinite(values)]
    if is_flat(values):
        value = float(values[0]) if values.size else 0.0
        return Limits(value, value)
    low, high = float(values.min()), float(values.max())
    if method.attrs.get("signed", low < 0) if signed is None else signed:
        reach = max(-low, high)
        return Limits(-reach, reach, signed=True)
    return Limits(low, high)


def error_limits(method: xr.Dataset) -> Limits:
    """From zero to half of the map's range or more: full colour is where two standard errors are all there is."""
    errors, limits = method["standard_error"].values, colour_limits(method)
    largest = float(errors[np.isfinite(errors)].max(initial=0.0))
    reach = limits.high if limits.signed else limits.high - limits.low
    return Limits(0.0, max(largest, reach / 2))


def outlier_scale(saliency: np.ndarray, outlier_perc: float = OUTLIER_PERC) -> float:
    """Where the scale of a map ends, any shape: the smallest magnitude above which at most so many per cent of the
    sum of magnitudes lie, as Captum's heat maps have it; 0 for a map that is zero or NaN everywhere.

    >>> outlier_scale(np.arange(1.0, 101.0), 5)  # 99 and 100 are 3.9 % of the sum
    98.0
    """
    magnitudes = np.sort(np.abs(saliency[np.isfinite(saliency)]), axis=None).astype(float)
    if not magnitudes.size:
        return 0.0
    sums = np.cumsum(magnitudes)
    return float(magnitudes[np.searchsorted(sums, (1 - outlier_perc / 100) * sums[-1])])


def is_flat(values: np.ndarray) -> bool:
    """Whether the finite values differ by no more than rounding does."""
    values = values[np.isfinite(values)]
    return not values.size or bool(np.ptp(values) <= 1e-6 * np.abs(values).max())


def explained_steps(method: xr.Dataset) -> list[int]:
    """The steps whose map has at least one finite value; an interrupted run leaves the others as NaN."""
    saliency = method["saliency"]
    finished = saliency.notnull().any([dim for dim in saliency.dims if dim != "step"])
    return [int(step) for step in saliency["step"].values[finished.values]]


def layers(method: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """(label, dataset over step, y, x) for each entry of one further dimension, such as `token`; else one, unlabelled.

    >>> grid = np.zeros((1, 2, 4, 4))
    >>> words = xr.Dataset({"saliency": (("step", "token", "y", "x"), grid)}, {"step": [3], "token": ["red", "disc"]})
    >>> [(label, dict(layer.saliency.sizes)) for label, layer in layers(words)]
    [('red', {'step': 1, 'y': 4, 'x': 4}), ('disc', {'step': 1, 'y': 4, 'x': 4})]
    """
    further: list[Hashable] = [dim for dim in method["saliency"].dims if dim not in ("step", "y", "x")]
    if not further:
        return [("", method)]
    labels = method[further[0]].values
    return [(str(label), method.isel({further[0]: i}, drop=True)) for i, label in enumerate(labels)]


def is_layered(method: xr.Dataset) -> bool:
    """Whether there are maps of several entries of a further dimension, such as `token`; draws are none of these."""
    return any(size > 1 for dim, size in method["saliency"].sizes.items() if dim not in ("step", "draw", "y", "x"))


def is_noised(trace: xr.Dataset) -> bool:
    """Whether these are frames of a noised photograph, and not the steps of a model that expects a picture."""
    return "pred_original_sample" not in trace


def unit_of(trace: xr.Dataset) -> str:
    """What one place of the sequence is called."""
    return "frame" if is_noised(trace) else "step"


def clean_pictures(trace: xr.Dataset) -> xr.DataArray:
    """(step, row, column, channel): what the model expects at each step; the frames themselves where nothing is."""
    return trace["sample" if is_noised(trace) else "pred_original_sample"]


def three(values: xr.DataArray) -> tuple[float, float, float]:
    """Low, median and high of what has no other dim than `quantile`."""
    low, median, high = (float(values.sel(quantile=name)) for name in ("low", "median", "high"))
    return low, median, high


def readable(number: float, digits: int = 3) -> str:
    """A number as people print it, with a real minus sign.

    >>> [readable(value) for value in (-0.012345, 1234567.0, float("inf"), float("nan"), 8)]
    ['−0.0123', '1.23e+06', '∞', 'n/a', '8']
    """
    if math.isnan(number):
        return "n/a"
    text = "∞" if math.isinf(number) else f"{abs(number):.{digits}g}"
    return f"−{text}" if number < 0 and text != "0" else text


def shortened(text: str, most: int) -> str:
    """
    >>> shortened("tabby", 5), shortened("tabby cat", 5)
    ('tabby', 'tabb…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def rgb(picture: np.ndarray) -> np.ndarray:
    """(row, column, 1 | 3 | 4) uint8 -> (row, column, 3) uint8."""
    picture = np.asarray(picture)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]


def overlay(
    picture: np.ndarray,
    saliency: np.ndarray,
    limits: Limits | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> np.ndarray:
    """A heat map over a picture: (row, column, channel) uint8 and (y, x) raw values -> (row, column, 3) uint8.

    The map is resized bilinearly to the picture. Where it is NaN, and everywhere if it is flat, the picture stays.
    """
    picture, saliency = rgb(picture), np.asarray(saliency)
    limits = limits or colour_limits(xr.Dataset({"saliency": (("y", "x"), saliency)}))
    if limits.flat:
        return picture.copy()
    values = resized(saliency, picture.shape[:2])
    colours = limits.cmap(cmap)(Normalize(limits.low, limits.high)(np.nan_to_num(values)))[..., :3] * 255
    mixed = (1 - alpha) * grey(picture) + alpha * colours
    return np.where(np.isfinite(values)[..., None], mixed.round(), picture).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """Luminance with the contrast lowered around the middle, so that neither black nor white drowns the colours."""
    luminance = picture @ np.array([0.299, 0.587, 0.114])
    return (128 + 0.7 * (luminance - 128))[..., None]


def resized(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with the weights of missing values left out; NaN where the nearest cell is NaN."""
    finite = np.isfinite(saliency)
    values, weights = (
        _resize(part, size, Image.Resampling.BILINEAR) for part in (np.where(finite, saliency, 0), finite)
    )
    there = _resize(finite, size, Image.Resampling.NEAREST) > 0
    return np.where(there, values / np.where(weights > 0, weights, 1), np.nan)


def _resize(values: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size[::-1], resampling), dtype=np.float64)


def plot_overlay(
    picture: np.ndarray,
    saliency: np.ndarray,
    *,
    ax: Axes | None = None,
    limits: Limits | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Axes:
    """`overlay` on matplotlib axes: the ones given, or new ones with their own figure (`ax.figure`)."""
    ax = ax or Figure(figsize=(3, 3), layout="constrained").subplots()
    bare(ax).imshow(overlay(picture, saliency, limits, cmap, alpha), interpolation="nearest")
    return ax


def plot_method(
    trace: xr.Dataset,
    method: xr.Dataset,
    *,
    shared_scale: bool = True,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Figure:
    """One column per explained step; rows: sample, clean prediction, heat map over it, standard error where known.

    A method with a further dimension, such as `token`, has a row per explained step and a column for each entry.
    """
    if is_layered(method):
        return _plot_layers(trace, method, shared_scale, cmap, alpha)
    steps = explained_steps(method)
    rows = list(_rows(trace, method, shared_scale, cmap, alpha))
    height, width = clean_pictures(trace).shape[1:3]
    sheet = _Sheet(len(rows), max(1, len(steps)), 1.5 * width / max(height, width), 1.5 * height / max(height, width))
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, row in enumerate(rows):
        _draw_row(figure, sheet, number, steps, row)
    for column, step in enumerate(steps):
        x, y, across, up = sheet.box(0, column)
        figure.text(
            x + across / 2, y + up + 0.01, _heading(trace, step), fontsize=8, color=INK, ha="center", va="bottom"
        )
    left = sheet.box(0, 0)[0]
    figure.text(left, 1 - 0.1 / sheet.size[1], _caption(method, steps, shared_scale), fontsize=9, color=INK, va="top")
    return figure


def _plot_layers(
    trace: xr.Dataset, method: xr.Dataset, shared: bool, cmap: str | Colormap | None, alpha: float
) -> Figure:
    """A row per explained step; columns: clean prediction, then the heat map of each entry of the further dimension."""
    steps, names = explained_steps(method), ["clean prediction", *(label for label, _ in layers(method))]
    height, width = clean_pictures(trace).shape[1:3]
    side = 1.5 if len(names) <= 8 else 1.1
    across, up = side * width / max(height, width), side * height / max(height, width)
    sheet = _Sheet(max(1, len(steps)), len(names), across, up, margins=(0.65, 0.15, 0.95, 0.8))
    figure = Figure(figsize=sheet.size, facecolor="white", dpi=130)
    for number, step in enumerate(steps):
        _draw_row(figure, sheet, number, range(len(names)), _layers_row(trace, method, step, shared, cmap, alpha))
    for column, name in enumerate(names):
        x, y, across, up = sheet.box(0, column)
        name, place = shortened(name, int(15 * side)), (x + across / 2, y + up + 0.06 / sheet.size[1])
        figure.text(*place, name, fontsize=8, color=INK, ha="center", va="bottom")
    left = sheet.box(0, 0)[0]
    figure.text(left, 1 - 0.1 / sheet.size[1], _caption(method, steps, shared), fontsize=9, color=INK, va="top")
    return figure


def _layers_row(
    trace: xr.Dataset, method: xr.Dataset, step: int, shared: bool, cmap: str | Colormap | None, alpha: float
) -> "_Row":
    """One step: the clean prediction, and over it each entry's map, all on one scale."""
    clean, limits = shrunk(clean_pictures(trace).sel(step=step).values, FIGURE_SIDE), colour_limits(method)
    own = limits if shared else colour_limits(method.sel(step=step), signed=limits.signed)
    maps = [layer["saliency"].sel(step=step).values for _, layer in layers(method)]
    pictures = [clean, *(overlay(clean, saliency, own, cmap, alpha) for saliency in maps)]
    return _Row(_heading(trace, step), dict(enumerate(pictures)), own, limits.cmap(cmap))


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
    trace: xr.Dataset, method: xr.Dataset, shared: bool, cmap: str | Colormap | None, alpha: float
) -> Iterator[_Row]:
    steps, limits = explained_steps(method), colour_limits(method)
    samples, clean = (
        {step: shrunk(pictures.sel(step=step).values, FIGURE_SIDE) for step in steps}
        for pictures in (trace["sample"], clean_pictures(trace))
    )
    yield _Row("sample", samples)
    yield _Row("clean prediction", clean)
    for label, layer in layers(method):
        maps = {step: layer.sel(step=step) for step in steps}
        own = {step: limits if shared else colour_limits(maps[step], signed=limits.signed) for step in steps}
        pictures = {step: overlay(clean[step], maps[step]["saliency"].values, own[step], cmap, alpha) for step in steps}
        yield _Row(label or "heat map", pictures, limits if shared else None, limits.cmap(cmap))
        if "standard_error" in layer:
            yield _error_row(layer, steps, error_limits(method))


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


def bare(ax: Axes) -> Axes:
    """No ticks, and no frame around what is a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return ax


def _heading(trace: xr.Dataset, step: int) -> str:
    here = trace.sel(step=step)
    return f"step {step}\nt = {readable(float(here['timestep']), 4)}\nlog-SNR {readable(float(here['log_snr']))}"


def _caption(method: xr.Dataset, steps: list[int], shared: bool) -> str:
    title = method.attrs.get("title", "Saliency")
    if not steps:
        return f"{title}: no step was finished"
    if colour_limits(method).flat:
        return f"{title}: flat, nothing is shown over the pictures"
    return f"{title}\n{'one colour scale, shared by all steps' if shared else 'each step has its own colour scale'}"


def timeline_gif(
    path: str | os.PathLike[str],
    trace: xr.Dataset,
    *methods: xr.Dataset,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
    milliseconds: int = 320,
) -> Path:
    """The clean prediction step by step, beside it the methods' maps, as a looping GIF at least 256 px high or wide.

    A method with a further dimension, such as `token`, has a small map for each entry below. A step that was not
    explained shows the map of the nearest explained step, and the frame says so. The file appears whole or not at all.
    """
    path = Path(path)
    frames = [_compact(frame) for frame in _frames(trace, methods, cmap, alpha)]
    durations = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _compact(frame: Image.Image) -> Image.Image:
    """At most 256 colours without dithering, whose noise a GIF would have to store."""
    return frame.quantize(256, dither=Image.Dither.NONE)


class _Panel(NamedTuple):
    """A picture of a frame of the time line, with what stands above it."""

    title: str
    note: str
    picture: np.ndarray


def _frames(
    trace: xr.Dataset, methods: Sequence[xr.Dataset], cmap: str | Colormap | None, alpha: float
) -> Iterator[Image.Image]:
    steps = explained_steps(methods[0]) if methods else []
    for step in map(int, trace["step"].values):
        picture = shrunk(clean_pictures(trace).sel(step=step).values, FRAME_SIDE)
        large, small = enlarged(picture), enlarged(shrunk(picture, SMALL_SIDE), SMALL_SIDE)
        first, rows = [_Panel("clean prediction", "", large)], []
        for method in methods:
            if is_layered(method):
                below = list(_panels(method, step, small, cmap, alpha))
                rows += [below[i : i + SMALL_COLUMNS] for i in range(0, len(below), SMALL_COLUMNS)]
            else:
                first += list(_panels(method, step, large, cmap, alpha))[:1]
        yield _frame(trace, step, steps, [first, *rows])


def _panels(
    method: xr.Dataset, step: int, picture: np.ndarray, cmap: str | Colormap | None, alpha: float
) -> Iterator[_Panel]:
    """The method's maps of the nearest explained step; none where no step was finished."""
    limits, small = colour_limits(method), is_layered(method)
    for label, layer in layers(method):
        if not (steps := explained_steps(layer)):
            continue
        nearest = min(steps, key=lambda known: abs(known - step))
        note = "map of this step" if nearest == step else f"map of step {nearest}, the nearest explained"
        if small:
            note = "" if nearest == step else f"of step {nearest}"
        title = label if small else " · ".join(filter(None, [method.attrs.get("title", "heat map"), label]))
        heat = overlay(picture, layer["saliency"].sel(step=nearest).values, limits, cmap, alpha)
        yield _Panel(title, note, heat)


def enlarged(picture: np.ndarray, side: int = 256) -> np.ndarray:
    """Grown by the whole factor that makes the longer side at least so many pixels; pixels stay square.

    >>> enlarged(np.zeros((64, 48, 3), np.uint8)).shape
    (256, 192, 3)
    """
    factor = max(1, math.ceil(side / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """RGB with the longer side at most so many pixels; smaller pictures stay exact.

    >>> shrunk(np.zeros((512, 1024, 3), np.uint8), 256).shape
    (128, 256, 3)
    """
    image = Image.fromarray(rgb(picture))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _frame(trace: xr.Dataset, step: int, marked: list[int], rows: Sequence[Sequence[_Panel]]) -> Image.Image:
    """One frame of the time line: titled pictures in rows, and below them where in the run this is."""
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
    draw.text((margin, top + 10), _heading(trace, step).replace("\n", "   "), font=_font(12), fill=INK)
    _draw_progress(draw, trace, step, marked, (margin, frame.width - margin, top + 35))
    return frame


def _draw_progress(
    draw: ImageDraw.ImageDraw, trace: xr.Dataset, step: int, marked: list[int], where: tuple[int, int, int]
) -> None:
    """A line for the run, a tick for each explained step, a dot for this one."""
    left, right, y = where
    first, last = int(trace["step"].values[0]), int(trace["step"].values[-1])

    def x(index: int) -> float:
        return left + (right - left) * (index - first) / max(1, last - first)

    draw.line((left, y, right, y), fill=RULE, width=3)
    for index in marked:
        draw.line((x(index), y - 5, x(index), y + 5), fill=FAINT, width=2)
    draw.circle((x(step), y), 5, fill=ACCENT)


def _font(size: int) -> Any:
    """DejaVu Sans comes with matplotlib, so that frames look alike on every machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
