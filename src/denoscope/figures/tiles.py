"""Sheets of tiles: a map over every explained frame of a run, and over the frames at its moments."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .clips import chosen_frame, frames_of, is_clip, middle_frame, still, still_maps
from .layout import Sheet
from .overlays import grey, grown, resized, rgb, shrunk
from .results import MOMENTS, clean_pictures, explained_steps, unit_of
from .scales import OUTLIER_PERC, outlier_scale
from .theme import DIVERGING, FAINT, INK, bare, readable, short_labels

DPI = 100
SHEET_WIDTH, ZOOM_SIDE = 1150, 224
"""Pixels across the tiles of a grid, and of the side of a zoomed tile."""
TILE_GAP, EDGE, LEAST_WIDTH = 4, 12, 480
"""Pixels between two tiles, around all tiles, and of the whole sheet's width."""
FOR, AGAINST = (np.array(matplotlib.colormaps[DIVERGING](end)[:3]) * 255 for end in (0.9, 0.1))
OPACITY = 0.9
UNEXPLAINED = 247
"""The grey level of a tile whose frame was not explained."""

Tiles = dict[tuple[int, int], np.ndarray]
"""Tiles (row, column, 3) uint8 of equal size, by their row and column on a sheet."""


def blended(picture: np.ndarray, saliency: np.ndarray, reach: float) -> np.ndarray:
    """Blend signed colours over a grey picture: (row, column, channel) uint8 and (y, x) -> (row, column, 3) uint8.

    Full colour is where a magnitude is `reach` or more; where the map is zero or NaN, and for a reach of 0, it is grey.
    """
    mixed = np.repeat(grey(rgb(picture)), 3, axis=-1)
    if reach > 0:
        values = np.nan_to_num(resized(np.asarray(saliency) / reach, mixed.shape[:2]))[..., None]
        strength = OPACITY * np.clip(np.abs(values), 0, 1)
        mixed = (1 - strength) * mixed + strength * np.where(values > 0, FOR, AGAINST)
    return np.asarray(mixed.round().astype(np.uint8))


def plot_grid(
    frames: xr.Dataset,
    result: xr.Dataset,
    *,
    columns: int = 10,
    outlier_perc: float = OUTLIER_PERC,
    frame: int | None = None,
) -> Figure:
    """Draw one tile per explained frame: the heat map over the frame, numbered.

    `frames` with `sample` (step, row, column, channel) uint8, `result` with `saliency` (step[, draw], y, x) of some of
    the steps; the mean over draws is shown. Each tile has its own scale, see `outlier_scale`. Up to twice `columns`
    tiles are drawn larger, half as many in a row. Of a clip one frame is drawn: `frame`, or the frame with the largest
    map mass.
    """
    title = str(result.attrs.get("title", "Saliency"))
    if is_clip(frames):
        clip = chosen_frame(frames_of(frames), [result], frame)
        title, frames = f"{title}, {clip}", still(frames, clip.index)
        result = still_maps(result, clip.index, clip.frames)
    maps, pictures = mean_maps(result), clean_pictures(frames)
    steps = [int(step) for step in maps["step"].values]
    across = min(len(steps), columns if len(steps) > 2 * columns else math.ceil(columns / 2))
    side = min(ZOOM_SIDE, SHEET_WIDTH // across)
    tiles = {divmod(i, across): _tile(pictures, maps, step, side, outlier_perc) for i, step in enumerate(steps)}
    empty = sum(not np.nan_to_num(saliency).any() for saliency in maps.values)
    note = _grid_note(result, unit_of(frames), outlier_perc, empty)
    figure, ax, sheet = _tiled(tiles, title, note, _signed([result]))
    for place, step in zip(tiles, steps, strict=True):
        x, y = sheet.corner(*place)
        ax.text(
            x + 3, y + 3, str(step), fontsize=6.5, color=INK, ha="left", va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.2},
        )  # fmt: skip
    return figure


def mean_maps(result: xr.Dataset) -> xr.DataArray:
    """Return the mean over draws, (step, y, x); NaN where no draw has a value."""
    saliency = result["saliency"]
    return saliency.mean("draw") if "draw" in saliency.dims else saliency


def _tile(
    pictures: xr.DataArray, maps: xr.DataArray, step: int, side: int, outlier_perc: float = OUTLIER_PERC
) -> np.ndarray:
    """Return a blend made in the picture's own size or more, so that colours are shrunk, and not signed values."""
    picture, saliency = grown(pictures.sel(step=step).values, side), maps.sel(step=step).values
    return shrunk(blended(picture, saliency, outlier_scale(saliency, outlier_perc)), side)


def _signed(results: Sequence[xr.Dataset]) -> bool:
    """Return True if a result says that its sign means something, or has negative values and says nothing."""
    return any(result.attrs.get("signed", bool((result["saliency"] < 0).any())) for result in results)


def _grid_note(result: xr.Dataset, unit: str, outlier_perc: float, empty: int) -> str:
    """Return the note above a grid: its tiles, draws, scale, and the number of maps without colour."""
    draws = result["saliency"].sizes.get("draw", 1)
    parts = [f"One tile per explained {unit}."]
    if draws > 1:
        parts.append(f"Maps are means of {draws} noise draws, over the first draw's {unit}.")
    parts.append(_scale_note(outlier_perc))
    if empty:
        parts.append(f"{empty} without colour: the map is zero or missing.")
    return " ".join(parts)


def _scale_note(outlier_perc: float = OUTLIER_PERC) -> str:
    """Return the sentence about the colour scale of each map."""
    if not outlier_perc:
        return "Each map has its own scale, to its largest magnitude."
    return f"Each map has its own scale: the magnitudes beyond its end are at most {outlier_perc:g} % of their sum."


def _tiled(
    tiles: Tiles, title: str, note: str, signed: bool, above: int = 0, left: int = EDGE
) -> tuple[Figure, Axes, Sheet]:
    """Draw tiles, and above them a title, a note and the key of the colours.

    The axes count pixels from the first tile; `above` and `left` pixels beside it are kept free for heads and labels.
    """
    sheet = _sheet(tiles, title, left)
    lines = textwrap.wrap(note, int(sheet.size[0]) // 6)
    sheet = sheet._replace(top=44 + 15 * len(lines) + above)
    across, down = sheet.size
    figure = Figure(figsize=(across / DPI, down / DPI), facecolor="white", dpi=DPI)
    ax = bare(figure.add_axes(sheet.fractions(sheet.left, sheet.top, *sheet.cells)))
    ax.imshow(_mosaic(sheet, tiles), interpolation="nearest", aspect="auto")
    figure.text(12 / across, 1 - 10 / down, title, fontsize=11, color=INK, va="top", parse_math=False)
    figure.text(12 / across, 1 - 34 / down, "\n".join(lines), fontsize=8, color=FAINT, va="top", linespacing=1.35)
    _draw_key(figure, sheet, signed)
    return figure, ax, sheet


def _sheet(tiles: Tiles, title: str, left: int) -> Sheet:
    """Return the sheet that holds the tiles, in pixels, without room above them yet."""
    rows = max(row for row, _ in tiles) + 1
    columns = max(column for _, column in tiles) + 1
    height, width = next(iter(tiles.values())).shape[:2]
    least_width = max(LEAST_WIDTH, 260 + 9 * len(title))
    return Sheet(
        rows, columns, width, height, TILE_GAP, left=left, bottom=EDGE, right=EDGE, top=0, least_width=least_width
    )


def _mosaic(sheet: Sheet, tiles: Tiles) -> np.ndarray:
    """Return all tiles as one picture, (row, column, 3) uint8, white between them."""
    width, height = sheet.cells
    whole = np.full((int(height), int(width), 3), 255, np.uint8)
    for place, tile in tiles.items():
        x, y = (int(start) for start in sheet.corner(*place))
        whole[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return whole


def _draw_key(figure: Figure, sheet: Sheet, signed: bool) -> None:
    """Draw the meaning of the colours, over a middle grey, in the upper right corner."""
    low, (below, over) = (-1.0, ("against", "for")) if signed else (0.0, ("0", "most"))
    right = sheet.size[0] - EDGE - 32
    ax = bare(figure.add_axes(sheet.fractions(right - 120, 13, 120, 11)))
    values = np.linspace(low, 1, 120)[None]
    ax.imshow(blended(np.full((1, 120, 3), 128, np.uint8), values, 1.0), interpolation="nearest", aspect="auto")
    for x, text, side in ((-6, below, "right"), (126, over, "left")):
        ax.text(x, 0, text, fontsize=8, color=INK, ha=side, va="center")


def plot_zooms(
    frames: xr.Dataset,
    results: Mapping[str, xr.Dataset],
    timing: xr.Dataset,
    label: str,
    *,
    frame: int | None = None,
) -> Figure:
    """Draw each method's map at the moments of a label: columns are frames, rows the frame and each method over it.

    `frames` and `results` as in `plot_grid`, `timing` as in `plot_likelihood`. The columns are the explained frames
    nearest to the median crossings of the levels, and the last one; a level that is never crossed has none. Of a clip
    one frame is drawn: `frame`, or the middle one.
    """
    moments, title = _moments(results, timing.sel(label=label)), f"“{short_labels([label])[label]}”, moment by moment"
    if is_clip(frames):
        clip = middle_frame(frames_of(frames), frame)
        title, frames = f"{title}, {clip}", still(frames, clip.index)
        results = {name: still_maps(result, clip.index, clip.frames) for name, result in results.items()}
    maps = {name: mean_maps(result) for name, result in results.items()}
    texts = [_zoom_head(frames, step, names) for step, names in moments.items()]
    above = 10 + 15 * max(text.count("\n") + 1 for text in texts)
    tiles = _zoom_tiles(clean_pictures(frames), list(moments), list(maps.values()))
    figure, ax, sheet = _tiled(tiles, title, _scale_note(), _signed([*results.values()]), above, 36)
    first = "clean prediction" if unit_of(frames) == "step" else "frame"
    rows = [first, *(str(result.attrs.get("title", name)) for name, result in results.items())]
    _label_zooms(ax, sheet, texts, rows)
    for row, saliency in enumerate(maps.values(), 1):
        absent = [column for column, step in enumerate(moments) if step not in saliency["step"].values]
        for column in absent:
            x, y = sheet.corner(row, column)
            centre = (x + sheet.width / 2, y + sheet.height / 2)
            ax.text(*centre, "not explained", fontsize=8, color=FAINT, ha="center")
    return figure


def _zoom_tiles(pictures: xr.DataArray, steps: Sequence[int], maps: Sequence[xr.DataArray]) -> Tiles:
    """Return the frame of each step in the first row, and below it a row of maps over it for each method."""
    tiles: Tiles = {}
    for column, step in enumerate(steps):
        tiles[0, column] = shrunk(grown(pictures.sel(step=step).values, ZOOM_SIDE), ZOOM_SIDE)
        for row, saliency in enumerate(maps, 1):
            if step in saliency["step"].values:
                tiles[row, column] = _tile(pictures, saliency, step, ZOOM_SIDE)
            else:
                tiles[row, column] = np.full_like(tiles[0, column], UNEXPLAINED)
    return tiles


def _moments(results: Mapping[str, xr.Dataset], timing: xr.Dataset) -> dict[int, list[str]]:
    """Return the frames to zoom into, in their order, and the moments that each stands for."""
    steps = sorted({step for result in results.values() for step in explained_steps(result)})
    if not steps:
        steps = sorted({int(step) for result in results.values() for step in result["step"].values})
    moments: dict[int, list[str]] = {}
    for level in timing["level"].values:
        place = float(timing["crossing"].sel(level=level, quantile="median"))
        if math.isfinite(place):
            nearest = min(steps, key=lambda step: abs(step - place))
            name = MOMENTS.get(f"{level:g}", "level")
            moments.setdefault(nearest, []).append(f"{name}: {level:g} at {place:.1f}")
    final = float(timing["final"].sel(quantile="median"))
    moments.setdefault(steps[-1], []).append(f"last explained; in the end {readable(final, 2)}")
    return dict(sorted(moments.items()))


def _zoom_head(frames: xr.Dataset, step: int, moments: Sequence[str]) -> str:
    """Return the lines above a column: its moments, its step and log-SNR."""
    log_snr = readable(float(frames["log_snr"].sel(step=step)), 2)
    return "\n".join([*moments, f"{unit_of(frames)} {step}, log-SNR {log_snr}"])


def _label_zooms(ax: Axes, sheet: Sheet, heads: Sequence[str], rows: Sequence[str]) -> None:
    """Write the heads above the columns and the labels beside the rows."""
    for column, text in enumerate(heads):
        x, _ = sheet.corner(0, column)
        ax.text(x + sheet.width / 2, -8, text, fontsize=8, color=INK, ha="center", va="bottom", linespacing=1.35)
    for row, text in enumerate(rows):
        _, y = sheet.corner(row, 0)
        ax.text(-8, y + sheet.height / 2, text, fontsize=9, color=INK, ha="right", va="center", rotation=90)
