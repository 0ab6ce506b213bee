"""Sheets of tiles: every frame of a run, and zooms into some."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .overlays import enlarged, grey, resized, rgb, shrunk
from .results import MOMENTS, clean_pictures, explained_steps, unit_of
from .scales import OUTLIER_PERC, outlier_scale
from .theme import DIVERGING, FAINT, INK, bare, readable, short_labels

DPI = 100
SHEET_WIDTH, ZOOM_SIDE = 1150, 224  # pixels
FOR, AGAINST = (np.array(matplotlib.colormaps[DIVERGING](end)[:3]) * 255 for end in (0.9, 0.1))
OPACITY = 0.9


def blended(picture: np.ndarray, saliency: np.ndarray, reach: float) -> np.ndarray:
    """Signed colours over a grey picture: (row, column, channel) uint8 and (y, x) raw values -> (row, column, 3) uint8.

    Full colour is where a magnitude is `reach` or more; where the map is zero or NaN, and for a reach of 0, it is grey.
    """
    mixed = np.repeat(grey(rgb(picture)), 3, axis=-1)
    if reach > 0:
        values = np.nan_to_num(resized(np.asarray(saliency) / reach, mixed.shape[:2]))[..., None]
        strength = OPACITY * np.clip(np.abs(values), 0, 1)
        mixed = (1 - strength) * mixed + strength * np.where(values > 0, FOR, AGAINST)
    return np.asarray(mixed.round().astype(np.uint8))


def plot_grid(
    frames: xr.Dataset, result: xr.Dataset, *, columns: int = 10, outlier_perc: float = OUTLIER_PERC
) -> Figure:
    """One tile per explained frame: the heat map over the frame, numbered.

    `frames` with `sample` (step, row, column, channel) uint8, `method` with `saliency` (step[, draw], y, x) of some of
    the steps; the mean over draws is shown. Each tile has its own scale, see `outlier_scale`. Up to twice `columns`
    tiles are drawn larger, half as many in a row.
    """
    maps, pictures = _maps(result), clean_pictures(frames)
    steps = [int(step) for step in maps["step"].values]
    across = min(len(steps), columns if len(steps) > 2 * columns else math.ceil(columns / 2))
    side = min(ZOOM_SIDE, SHEET_WIDTH // across)
    tiles = {divmod(i, across): _tile(pictures, maps, step, side, outlier_perc) for i, step in enumerate(steps)}
    empty = sum(not np.nan_to_num(saliency).any() for saliency in maps.values)
    note = _grid_note(result, unit_of(frames), outlier_perc, empty)
    figure, ax, plan = _sheet(tiles, result.attrs.get("title", "Saliency"), note, _signed([result]))
    for place, step in zip(tiles, steps, strict=True):
        x, y = plan.corner(*place)
        ax.text(
            x + 3, y + 3, str(step), fontsize=6.5, color=INK, ha="left", va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.2},
        )  # fmt: skip
    return figure


def _maps(result: xr.Dataset) -> xr.DataArray:
    """(step, y, x): the mean over draws, NaN where no draw has a value."""
    saliency = result["saliency"]
    return saliency.mean("draw") if "draw" in saliency.dims else saliency


def _tile(
    pictures: xr.DataArray, maps: xr.DataArray, step: int, side: int, outlier_perc: float = OUTLIER_PERC
) -> np.ndarray:
    """Blended in the picture's own size or more, so that what is shrunk are colours and not signed values."""
    picture, saliency = enlarged(pictures.sel(step=step).values, side), maps.sel(step=step).values
    return shrunk(blended(picture, saliency, outlier_scale(saliency, outlier_perc)), side)


def _signed(results: Sequence[xr.Dataset]) -> bool:
    return any(result.attrs.get("signed", bool((result["saliency"] < 0).any())) for result in results)


def _grid_note(result: xr.Dataset, noun: str, outlier_perc: float, empty: int) -> str:
    draws = result["saliency"].sizes.get("draw", 1)
    parts = [f"One tile per explained {noun}."]
    if draws > 1:
        parts.append(f"Maps are means of {draws} noise draws, over the first draw's {noun}.")
    parts.append(_scale_note(outlier_perc))
    if empty:
        parts.append(f"{empty} without colour: the map is zero or missing.")
    return " ".join(parts)


def _scale_note(outlier_perc: float = OUTLIER_PERC) -> str:
    if not outlier_perc:
        return "Each map has its own scale, to its largest magnitude."
    return f"Each map has its own scale: the magnitudes beyond its end are at most {outlier_perc:g} % of their sum."


class _Plan(NamedTuple):
    """Where tiles go, in pixels: equal ones in straight rows and columns, below a head, beside row labels."""

    rows: int
    columns: int
    height: int
    width: int
    head: int
    left: int = 12
    gap: int = 4
    edge: int = 12
    least: int = 480

    @property
    def mosaic(self) -> tuple[int, int]:
        return self.rows * (self.height + self.gap) - self.gap, self.columns * (self.width + self.gap) - self.gap

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole."""
        return max(self.least, self.left + self.mosaic[1] + self.edge), self.head + self.mosaic[0] + self.edge

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """x and y of a tile's upper left pixel in the mosaic."""
        return column * (self.width + self.gap), row * (self.height + self.gap)


def _sheet(
    tiles: Mapping[tuple[int, int], np.ndarray], title: str, note: str, signed: bool, above: int = 0, left: int = 12
) -> tuple[Figure, Axes, _Plan]:
    """Tiles (row, column, 3) uint8 by their place, a title, a note and the key of the colours above them.

    The axes count pixels of the mosaic; `above` and `left` pixels beside it are kept free for heads and labels.
    """
    rows, columns = (max(place[axis] for place in tiles) + 1 for axis in (0, 1))
    height, width = next(iter(tiles.values())).shape[:2]
    plan = _Plan(rows, columns, height, width, 0, left, least=max(480, 260 + 9 * len(title)))
    lines = textwrap.wrap(note, plan.size[0] // 6)
    plan = plan._replace(head=44 + 15 * len(lines) + above)
    across, down = plan.size
    figure = Figure(figsize=(across / DPI, down / DPI), facecolor="white", dpi=DPI)
    ax = bare(figure.add_axes(_box(plan, plan.left, plan.head, plan.mosaic[1], plan.mosaic[0])))
    ax.imshow(_mosaic(plan, tiles), interpolation="nearest", aspect="auto")
    figure.text(12 / across, 1 - 10 / down, title, fontsize=11, color=INK, va="top", parse_math=False)
    figure.text(12 / across, 1 - 34 / down, "\n".join(lines), fontsize=8, color=FAINT, va="top", linespacing=1.35)
    _draw_key(figure, plan, signed)
    return figure, ax, plan


def _box(plan: _Plan, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Pixels from the upper left -> fractions from the lower left, as matplotlib wants them."""
    across, down = plan.size
    return x / across, 1 - (y + height) / down, width / across, height / down


def _mosaic(plan: _Plan, tiles: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    whole = np.full((*plan.mosaic, 3), 255, np.uint8)
    for place, tile in tiles.items():
        x, y = plan.corner(*place)
        whole[y : y + plan.height, x : x + plan.width] = tile
    return whole


def _draw_key(figure: Figure, plan: _Plan, signed: bool) -> None:
    """What the colours mean, over a middle grey, in the upper right corner."""
    low, (below, over) = (-1.0, ("against", "for")) if signed else (0.0, ("0", "most"))
    right = plan.size[0] - plan.edge - 32
    ax = bare(figure.add_axes(_box(plan, right - 120, 13, 120, 11)))
    values = np.linspace(low, 1, 120)[None]
    ax.imshow(blended(np.full((1, 120, 3), 128, np.uint8), values, 1.0), interpolation="nearest", aspect="auto")
    for x, text, side in ((-6, below, "right"), (126, over, "left")):
        ax.text(x, 0, text, fontsize=8, color=INK, ha=side, va="center")


def plot_zooms(frames: xr.Dataset, results: Mapping[str, xr.Dataset], timing: xr.Dataset, label: str) -> Figure:
    """What each method sees at the moments of a label: columns are frames, rows the frame and each method over it.

    `frames` and `methods` as in `plot_grid`, `timing` as in `plot_likelihood`. The columns are the explained frames
    nearest to the median crossings of the levels, and the last one; a level that is never crossed has none.
    """
    heads = _moments(results, timing.sel(label=label))
    pictures, maps = clean_pictures(frames), {name: _maps(result) for name, result in results.items()}
    tiles: dict[tuple[int, int], np.ndarray] = {}
    for column, step in enumerate(heads):
        tiles[0, column] = shrunk(enlarged(pictures.sel(step=step).values, ZOOM_SIDE), ZOOM_SIDE)
        for row, saliency in enumerate(maps.values(), 1):
            known = step in saliency["step"].values
            tiles[row, column] = _tile(pictures, saliency, step, ZOOM_SIDE) if known else 0 * tiles[0, column] + 247
    texts = [_zoom_head(frames, step, parts) for step, parts in heads.items()]
    above = 10 + 15 * max(text.count("\n") + 1 for text in texts)
    title = f"“{short_labels([label])[label]}”, moment by moment"
    figure, ax, plan = _sheet(tiles, title, _scale_note(), _signed([*results.values()]), above, 36)
    first = "clean prediction" if unit_of(frames) == "step" else "frame"
    rows = [first, *(str(result.attrs.get("title", name)) for name, result in results.items())]
    _label_zooms(ax, plan, texts, rows)
    for row, saliency in enumerate(maps.values(), 1):
        for column in (i for i, step in enumerate(heads) if step not in saliency["step"].values):
            x, y = plan.corner(row, column)
            ax.text(x + plan.width / 2, y + plan.height / 2, "not explained", fontsize=8, color=FAINT, ha="center")
    return figure


def _moments(results: Mapping[str, xr.Dataset], timing: xr.Dataset) -> dict[int, list[str]]:
    """The frames to zoom in on, in their order, and which moments each stands for."""
    known = sorted({step for result in results.values() for step in explained_steps(result)})
    known = known or sorted({int(step) for result in results.values() for step in result["step"].values})
    found: dict[int, list[str]] = {}
    for level in timing["level"].values:
        place = float(timing["crossing"].sel(level=level, quantile="median"))
        if math.isfinite(place):
            nearest = min(known, key=lambda step: abs(step - place))
            name = MOMENTS.get(f"{level:g}", "level")
            found.setdefault(nearest, []).append(f"{name}: {level:g} at {place:.1f}")
    final = float(timing["final"].sel(quantile="median"))
    found.setdefault(known[-1], []).append(f"last explained; in the end {readable(final, 2)}")
    return dict(sorted(found.items()))


def _zoom_head(frames: xr.Dataset, step: int, moments: Sequence[str]) -> str:
    where = f"{unit_of(frames)} {step}, log-SNR {readable(float(frames['log_snr'].sel(step=step)), 2)}"
    return "\n".join([*moments, where])


def _label_zooms(ax: Axes, plan: _Plan, heads: Sequence[str], rows: Sequence[str]) -> None:
    for column, text in enumerate(heads):
        x, _ = plan.corner(0, column)
        ax.text(x + plan.width / 2, -8, text, fontsize=8, color=INK, ha="center", va="bottom", linespacing=1.35)
    for row, text in enumerate(rows):
        _, y = plan.corner(row, 0)
        ax.text(-8, y + plan.height / 2, text, fontsize=9, color=INK, ha="right", va="center", rotation=90)
