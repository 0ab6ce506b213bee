"""The still picture of several variants: a strip of clean predictions each, on one axis of noise, and their steps.

Columns are noise levels that all variants share, evenly spread in log-SNR: pictures below one another have the same
noise left. The last column is the finished picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .clips import frames_of, is_clip, middle_frame, still
from .noise_axis import Axis
from .overlays import rgb, shrunk
from .results import Explained
from .theme import FAINT, FIGURE_SIDE, HUES, INK, RULE, bare, readable, shortened
from .words import plot_totals

LEVELS_DRAWN = 8
CELL, LANE, BARS = 1.2, 0.32, 2.4
"""Inches of a picture, of a row of steps, and of the bars of all words."""


def plot_variants(explanations: Mapping[str, Explained], run: Mapping[str, Any], *, frame: int | None = None) -> Figure:
    """Draw strips of clean predictions, below them each variant's steps, and the totals of words if there are any.

    `run` is the record of the comparison; its titles name the rows. Of clips one frame is drawn: `frame`, or
    the middle one of each.
    """
    sequences = {
        str(run["variants"][name]["title"]): _still(each.pictures, frame) for name, each in explanations.items()
    }
    clips = any(is_clip(each.pictures) for each in explanations.values())
    variants = run["variants"].values()
    totals = {variant["title"]: variant["relevance"] for variant in variants if variant["relevance"]}
    axis = Axis.of(list(sequences.values()))
    heights = [CELL * len(sequences), LANE * len(sequences) + 0.3, BARS if totals else 0]
    rows = sum(height > 0 for height in heights)
    size = (CELL * (LEVELS_DRAWN + 1) + 1.7, sum(heights) + 1.1 + 0.5 * rows)
    figure = Figure(figsize=size, facecolor="white", dpi=110, layout="constrained")
    parts = figure.subfigures(rows, 1, height_ratios=heights[:rows], squeeze=False)[:, 0]
    _draw_strips(parts[0], sequences, axis)
    _draw_lanes(parts[1].subplots(), sequences, axis)
    if totals:
        _draw_totals(parts[2].subplots(), totals)
    title = shortened(str(run.get("prompt") or "One run, several ways"), 100)
    if clips:
        title += f"\n{'the middle frame' if frame is None else f'frame {frame}'} of each clip"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def _still(pictures: xr.Dataset, frame: int | None) -> xr.Dataset:
    """Return one frame of a clip; pictures as they are."""
    return still(pictures, middle_frame(frames_of(pictures), frame).index) if is_clip(pictures) else pictures


def shared_levels(axis: Axis, number: int = LEVELS_DRAWN) -> list[int]:
    """Return the places of `number` levels of the axis, the nearest to an even spread in log-SNR.

    >>> levels = np.array([-6.0, -5.9, -5.8, 0.0, 6.0])
    >>> shared_levels(Axis(levels, levels), 3)
    [0, 3, 4]
    """
    low, high = axis.ends
    clipped = np.clip(axis.levels, low, high)
    return [int(np.abs(clipped - wanted).argmin()) for wanted in np.linspace(low, high, number)]


def _draw_strips(part: Any, sequences: Mapping[str, xr.Dataset], axis: Axis) -> None:
    """Draw a row for each variant: its clean predictions at the shared levels, and its finished picture."""
    chosen = shared_levels(axis)
    grid = part.subplots(len(sequences), LEVELS_DRAWN + 1, squeeze=False)
    for row, (title, pictures) in zip(grid, sequences.items(), strict=True):
        places = axis.places(pictures)
        predictions = [pictures["pred_original_sample"].values[places[at]] for at in chosen]
        for ax, picture in zip(row, [*predictions, rgb(pictures["image"].values)], strict=True):
            bare(ax).imshow(shrunk(picture, FIGURE_SIDE), interpolation="nearest")
        row[0].set_ylabel(shortened(title, 22), fontsize=8, color=INK)
    for ax, at in zip(grid[0], chosen, strict=False):
        ax.set_title(f"log-SNR {readable(float(axis.levels[at]), 2)}", fontsize=7, color=FAINT)
    grid[0][-1].set_title("in the end", fontsize=7, color=FAINT)


def _draw_lanes(ax: Axes, sequences: Mapping[str, xr.Dataset], axis: Axis) -> None:
    """Draw a mark for every step of every variant, over the bands of SNR."""
    low, high = axis.ends
    for edge in (np.log(1e-2), 0.0):
        ax.axvline(edge, color=RULE, linewidth=1)
    for row, pictures in enumerate(sequences.values()):
        levels = np.clip(pictures["log_snr"].values, low, high)
        ax.vlines(levels, row - 0.32, row + 0.32, color=HUES[row % len(HUES)], linewidth=1.4)
    spare = 0.01 * (high - low)
    ax.set_xlim(low - spare, high + spare)
    _named(ax, list(sequences))
    ax.set_xlabel(
        "log-SNR of the steps; lines at an SNR of 0.01 (coarse below) and 1 (clean-up above)", fontsize=8, color=INK
    )


def _draw_totals(ax: Axes, totals: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    """Draw for each word of the first variant a bar of every variant that has the same words."""
    words = [word for word, _ in next(iter(totals.values()))]
    bars = {
        shortened(title, 30): xr.DataArray([value for _, value in values], {"token": words}, ("token",))
        for title, values in totals.items()
        if [word for word, _ in values] == words
    }
    plot_totals(bars, ax=ax, title="Relevance of words, 0 to 1 at each step, added up over the steps")


def _named(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows from the top, and leave nothing else but an axis below."""
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), [shortened(name, 22) for name in names])
    ax.tick_params(labelsize=8, color=RULE, labelcolor=INK)
    ax.spines[:].set_visible(False)
