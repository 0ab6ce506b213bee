"""Maps over the picture that they explain, the right way up: `denoscope.plot`."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from ..errors import InputError, did_you_mean, shown_value
from .beneath import Beneath, frames_beneath, picture_beneath, unit_word
from .clips import ChosenFrame, checked_frame, chosen_frame, frames_of, is_clip, still_maps
from .overlays import overlay
from .results import explained_steps
from .scales import Limits, clipped_limits, is_flat
from .theme import ALPHA, INK, bare, readable, shortened

Scale = Literal["shared", "each"]
SCALES: tuple[Scale, ...] = ("shared", "each")
PANELS_IN_ROW, PANEL_SIDE = 5, 2.6
"""Panels in a row, and inches of a panel's longer side."""
Chosen = Mapping[str, str | Sequence[str] | None]
"""Names of words and layers to draw, by their dimension; None for all."""
MAP_DIMS = {"step", "frame", "y", "x", "draw"}


@dataclass(frozen=True)
class Panel:
    """One map (y, x) as it is drawn: its step, its word or layer if there are several, its values and colour scale.

    `frame` is the frame of the clip beneath it; None for a picture.
    """

    step: int
    entry: str
    values: np.ndarray
    limits: Limits
    frame: int | None = None


def plot(
    picture: Any,
    maps: Any = None,
    step: int | Sequence[int] | None = None,
    token: str | Sequence[str] | None = None,
    method: str | None = None,
    ax: Axes | None = None,
    *,
    layer: str | Sequence[str] | None = None,
    frame: int | Sequence[int] | None = None,
    scale: Scale = "shared",
    beneath: Beneath | None = None,
    outlier_perc: float = 0.0,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Axes | Figure:
    """Draw maps over their picture: one map on axes, several as the panels of a figure.

    `picture` is a trace, frames, an explanation, its pictures, or a plain picture: (row, column[, channel]) uint8 or
    from 0 to 1, or a PIL image. A clip is a list of plain pictures, or (frame, row, column, channel). `maps` is the
    result of a method, a mapping of results by method, or an explanation; it may be left out where `picture` is an
    explanation. Means over noise draws are drawn.

    `step`, `token`, `layer` and `method` choose; without them every explained step and every word is drawn. `frame`
    counts the frames of a clip; without it the frame with the largest map mass is drawn, and the title says so. Colours
    have one scale over all steps and words ("shared"), or a scale for each map ("each"); beyond the ends of a signed
    scale lie at most `outlier_perc` per cent of the summed magnitudes. Beneath lies the finished
    picture ("final"), or the clean prediction or frame of the step ("step"), which is the default for frames. On the
    axes given, y counts pixels of the picture from the top.

    Raises `InputError` for a step, word, layer, frame or method that is not there, and for several maps on one `ax`.
    """
    if scale not in SCALES:
        raise InputError(f"The scale of the colours is {shown_value(scale)}. {did_you_mean(str(scale), SCALES)}")
    if ax is not None and not isinstance(ax, Axes):
        raise InputError(f"ax is {shown_value(ax)}. Give matplotlib axes, such as pyplot.gca(), or leave it out.")
    if isinstance(cmap, str) and cmap not in colormaps:
        raise InputError(f'There is no colour map "{cmap}". Give one of matplotlib\'s, such as "viridis" or "RdBu_r".')
    if not 0 <= outlier_perc < 100:
        raise InputError(f"outlier_perc is {outlier_perc}. Give the per cent of outliers, from 0 to below 100.")
    name, result = _result(picture if maps is None else maps, method)
    _refuse_other_shape(picture_beneath(picture, int(result["step"].values.flat[0]), beneath), result["saliency"])
    chosen = {"token": token, "layer": layer}
    clip = _clip(picture, result, step, frame, chosen)
    panels = list(_panels(result, step, chosen, scale, outlier_perc, clip))
    title = str(result.attrs.get("title", name or "Saliency"))
    if clip and clip.chosen:
        title = f"{title}, {clip.chosen}"
    drawing = _Drawing(picture, beneath, unit_word(picture), cmap, alpha, bool(clip and not clip.chosen))
    if ax is None:
        return _new(drawing, panels, title)
    if len(panels) > 1:
        raise InputError(
            f"{len(panels)} maps cannot be drawn on one ax: {title} at {', '.join(map(_name_of, panels[:6]))}"
            f"{', ...' if len(panels) > 6 else ''}. Choose one step and one word or layer, or leave ax out."
        )
    return drawing.draw(ax, panels[0], f"{title}, {drawing.place(panels[0])}", bar=True)


# The maps to draw


@dataclass(frozen=True)
class _Clip:
    """The frames of a clip to draw, of how many; `chosen` if one stands for all."""

    shown: Sequence[int]
    frames: int
    chosen: ChosenFrame | None


def _clip(
    picture: Any, result: xr.Dataset, step: int | Sequence[int] | None, frame: Any, chosen: Chosen
) -> _Clip | None:
    """Return the frames to draw; None for maps of a picture over a picture."""
    frames = frames_beneath(picture) or (frames_of(result) if is_clip(result) else None)
    if frames is None:
        if frame is not None:
            raise InputError(f"These maps are of a picture, so frame={shown_value(frame)} cannot be chosen.")
        return None
    if isinstance(frame, Sequence) and not isinstance(frame, str) and len(frame):
        return _Clip([checked_frame(each, frames) for each in frame], frames, None)
    maps = _with_chosen(result["saliency"].sel(step=_steps(result["saliency"], step)), chosen)
    stands_for_all = chosen_frame(frames, [maps.to_dataset(name="saliency")], frame)
    return _Clip([stands_for_all.index], frames, stands_for_all)


def _result(maps: Any, method: str | None) -> tuple[str, xr.Dataset]:
    """Return the method's name, if known, and its result; choose from several results by `method`."""
    if isinstance(maps, xr.DataArray):
        maps = maps.to_dataset(name="saliency").assign_attrs(maps.attrs)
    if isinstance(maps, xr.Dataset) and "saliency" in maps:
        if method is not None:
            raise InputError(f"There is only one result here, so no method {shown_value(method)} can be chosen.")
        return "", maps
    results = maps.methods() if callable(getattr(maps, "methods", None)) else maps
    if not isinstance(results, Mapping) or isinstance(results, xr.Dataset) or not results:
        raise InputError(
            f"There are no maps to draw in a {type(maps).__name__}. Give what a method returned (a dataset with "
            "saliency), a mapping of such results, or an explanation with at least one."
        )
    if method is None and len(results) > 1:
        raise InputError(f"There are results of {len(results)} methods: {', '.join(results)}. Name one: method=...")
    chosen = next(iter(results)) if method is None else method
    if chosen not in results:
        raise InputError(f"There is no result of a method {shown_value(chosen)}. {did_you_mean(str(chosen), results)}")
    return chosen, results[chosen]


def _panels(
    result: xr.Dataset,
    step: int | Sequence[int] | None,
    chosen: Chosen,
    scale: Scale,
    outlier_perc: float,
    clip: _Clip | None,
) -> Iterator[Panel]:
    """Yield the chosen maps, steps outside, then frames, and words inside, with their colour scales."""
    maps = _sorted(result["saliency"].mean("draw", keep_attrs=True) if "draw" in result.dims else result["saliency"])
    whole = _limits(maps, outlier_perc, result.attrs.get("signed"))
    further = [str(dim) for dim in maps.dims if dim not in MAP_DIMS]
    maps = _with_chosen(maps, chosen)
    for at in _steps(maps, step):
        for frame, of_frame in _of_frames(maps.sel(step=at), clip):
            for entry, values in _entries(of_frame, further):
                limits = whole if scale == "shared" else _limits(values, outlier_perc, whole.signed)
                yield Panel(at, entry, values.transpose("y", "x").values, limits, frame)


def _of_frames(maps: xr.DataArray, clip: _Clip | None) -> Iterator[tuple[int | None, xr.DataArray]]:
    """Yield the maps of each frame to draw."""
    if clip is None:
        yield None, maps
        return
    for frame in clip.shown:
        yield frame, still_maps(maps.to_dataset(name="saliency"), frame, clip.frames)["saliency"]


def _refuse_other_shape(pixels: np.ndarray, maps: xr.DataArray) -> None:
    """Raise `InputError` for maps whose coordinates are of a picture with other proportions."""
    if not {"y", "x"} <= set(maps.coords):
        return
    height, width = (float(maps[dim].min() + maps[dim].max()) for dim in ("y", "x"))
    if abs(height / width - pixels.shape[0] / pixels.shape[1]) > 0.02 * height / width:
        raise InputError(
            f"The maps are of a picture of {width:.0f} × {height:.0f} pixels, and the picture given has "
            f"{pixels.shape[1]} × {pixels.shape[0]}. Give the trace, the frames or the picture that was explained."
        )


def _sorted(maps: xr.DataArray) -> xr.DataArray:
    """Return the maps with rows from the top and columns from the left, as their coordinates say, if they have any."""
    if not {"step", "y", "x"} <= set(maps.dims):
        raise InputError(
            f"These maps have the dimensions {', '.join(map(str, maps.dims)) or 'none'}, and step, y and x are needed. "
            "Give what a method returned; choose a step by step=..., not by .sel."
        )
    return maps.sortby([dim for dim in ("y", "x") if dim in maps.coords])


def _limits(maps: xr.DataArray, outlier_perc: float, signed: bool | None) -> Limits:
    """Return the colour limits of some maps."""
    return clipped_limits(maps.to_dataset(name="saliency"), outlier_perc, signed)


def _steps(maps: xr.DataArray, step: int | Sequence[int] | None) -> list[int]:
    """Return the steps to draw: those chosen, or all with a map, or all if none has one."""
    allowed = [int(each) for each in maps["step"].values]
    if step is None:
        return explained_steps(maps.to_dataset(name="saliency")) or allowed
    try:
        numbers = [step] if isinstance(step, (int, np.integer)) else list(step)
        steps = [operator.index(number) for number in numbers if not isinstance(number, bool)]
    except TypeError:
        steps = []
    if len(steps) == 0 or isinstance(step, bool):
        raise InputError(
            f"The step to draw is {shown_value(step)}. Give a step or several, as whole numbers, among "
            f"{', '.join(map(str, allowed))}."
        )
    absent = [each for each in steps if each not in allowed]
    if absent:
        raise InputError(
            f"There is no map of step {', '.join(map(str, absent))}. Explained are the steps "
            f"{', '.join(map(str, allowed))}. Choose among these, or explain that step too."
        )
    return steps


def _with_chosen(maps: xr.DataArray, chosen: Chosen) -> xr.DataArray:
    """Return the maps of the entries that are chosen of each further dimension; None stands for all of them."""
    for dim, names in chosen.items():
        if names is not None:
            maps = _with_entries(maps, dim, names)
    return maps


def _with_entries(maps: xr.DataArray, dim: str, names: str | Sequence[str]) -> xr.DataArray:
    """Return the maps of the words or layers named; each name may stand for several entries that are equal."""
    if dim not in maps.dims:
        raise InputError(f"These maps have no {dim}, so {dim}={shown_value(names)} cannot be chosen. Leave it out.")
    allowed = [str(entry) for entry in maps[dim].values]
    wanted = [names] if isinstance(names, str) or not isinstance(names, Sequence) else list(names)
    if not wanted:
        raise InputError(f"No {dim} is chosen. Name at least one, or leave {dim} out for all.")
    for name in wanted:
        if name not in allowed:
            raise InputError(f"There is no map of the {dim} {shown_value(name)}. {did_you_mean(str(name), allowed)}")
    return maps.isel({dim: [allowed.index(name) for name in wanted]})


def _entries(maps: xr.DataArray, further: Sequence[str]) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield every map (y, x) of a step with the names of its word, layer, or both."""
    if not further:
        yield "", maps
        return
    dim, *others = further
    labels = maps[dim].values
    for i, label in enumerate(labels):
        for entry, values in _entries(maps.isel({dim: i}, drop=True), others):
            yield ", ".join(filter(None, [f"“{label}”" if dim == "token" else f"{dim} {label}", entry])), values


def _name_of(panel: Panel) -> str:
    """Return a panel's step, frame and entry."""
    frame = "" if panel.frame is None else f"frame {panel.frame}"
    return " ".join(filter(None, [f"step {panel.step}", frame, panel.entry]))


# Drawing them


@dataclass(frozen=True)
class _Drawing:
    """Everything that the panels of a figure share."""

    picture: Any
    beneath: Beneath | None
    unit: str
    cmap: str | Colormap | None
    alpha: float
    several_frames: bool

    def place(self, panel: Panel) -> str:
        """Return a panel's step, frame and entry in words, and the reason why no map is seen."""
        finite = bool(np.isfinite(panel.values).any())
        reason = "flat" if finite and is_flat(panel.values) else "" if finite else "no value"
        frame = f"frame {panel.frame}" if self.several_frames else ""
        return ", ".join(filter(None, [f"{self.unit} {panel.step}", frame, shortened(panel.entry, 30), reason]))

    def draw(self, ax: Axes, panel: Panel, title: str, bar: bool) -> Axes:
        """Draw a panel on axes, and a colour bar beside it."""
        pixels = picture_beneath(self.picture, panel.step, self.beneath, panel.frame)
        height, width = pixels.shape[:2]
        drawn = overlay(pixels, panel.values, panel.limits, self.cmap, self.alpha)
        bare(ax).imshow(drawn, interpolation="nearest", extent=(0, width, height, 0))
        ax.set_title(title, fontsize=9, color=INK, parse_math=False)
        if bar and not panel.limits.flat:
            self.draw_bar([ax], panel.limits)
        return ax

    def draw_bar(self, axes: Sequence[Axes], limits: Limits) -> None:
        """Draw one colour bar for the axes."""
        colours = ScalarMappable(Normalize(limits.low, limits.high), limits.cmap(self.cmap))
        bar = axes[0].figure.colorbar(colours, ax=list(axes), shrink=0.8, format=lambda value, _: readable(value))
        bar.ax.tick_params(labelsize=7, length=2, labelcolor=INK)
        bar.ax.spines[:].set_visible(False)


def _new(drawing: _Drawing, panels: Sequence[Panel], title: str) -> Axes | Figure:
    """Draw the panels on a new figure; return its axes if it has one panel, else the figure.

    The figure is made by pyplot, so that a notebook displays it and `pyplot.show()` finds it.
    """
    from matplotlib import pyplot

    rows, columns = _rows_and_columns(panels)
    height, width = picture_beneath(drawing.picture, panels[0].step, drawing.beneath, panels[0].frame).shape[:2]
    across, up = PANEL_SIDE * width / max(height, width), PANEL_SIDE * height / max(height, width)
    size = (columns * across + 1.0, rows * (up + 0.3) + 0.4)
    figure = pyplot.figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    if len(panels) == 1:
        return drawing.draw(grid[0, 0], panels[0], f"{title}, {drawing.place(panels[0])}", bar=True)
    shared = len({panel.limits for panel in panels}) == 1
    for ax, panel in zip(grid.flat, panels, strict=False):
        drawing.draw(ax, panel, drawing.place(panel), bar=not shared)
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    if shared and not panels[0].limits.flat:
        drawing.draw_bar(list(grid.flat[: len(panels)]), panels[0].limits)
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)  # a notebook displays the figure that is returned; left open, it would be there twice
    return figure


def _rows_and_columns(panels: Sequence[Panel]) -> tuple[int, int]:
    """Return a row per step and a column per word, or rows of at most PANELS_IN_ROW panels where there is one word."""
    steps = len({panel.step for panel in panels})
    entries = len(panels) // steps
    if entries > 1 and steps > 1 and entries * steps == len(panels):
        return steps, entries
    columns = min(PANELS_IN_ROW, len(panels))
    return -(-len(panels) // columns), columns
