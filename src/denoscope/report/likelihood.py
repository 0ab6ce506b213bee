"""The likelihood of each label on a page: lines and bands over draws, crossings, the table of the moments."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..figures.results import Explained, three
from ..figures.theme import DASHES, Key, hue_and_dash, readable
from .page import column_middles, line, path, rounded

LABEL_HUES = ("#b8498a", "#b07d00", "#2f8fc4", "#7b6be0", "#4b8f4f")
"""The hues of labels, for light and dark ground; no method has one of them."""
LABEL_DASHES = DASHES[1:]
"""The dashes of the labels that are not explained."""
INTERVAL = {"low": (0.05, "lower"), "median": (0.5, "linear"), "high": (0.95, "higher")}
"""Over draws: the median, and the interval that holds at least 90 % of them."""


def explained_label(explanation: Explained) -> str | None:
    """Return the label that the maps explain: the run's, or the first if the run names none; None without labels."""
    likelihood, label = explanation.likelihood, explanation.run.get("label")
    labels = [] if likelihood is None else [str(name) for name in likelihood["label"].values]
    return str(label) if label in labels else next(iter(labels), None)


def keys(labels: Sequence[str], explained: str | None) -> list[Key]:
    """Return a hue and a dash for every label, so that lines are told apart without colours too."""
    others = [label for label in labels if label != explained]
    looks = {label: hue_and_dash(i, LABEL_HUES, LABEL_DASHES) for i, label in enumerate(others)}
    if explained is not None:
        looks[explained] = ("var(--ink)", "none")
    return [Key(label, *looks[label], explained=label == explained) for label in labels]


def interval(likelihood: xr.DataArray) -> xr.DataArray:
    """Return low, median and high over draws, (quantile, step, label)."""
    parts: list[xr.DataArray] = [
        likelihood.quantile(q, "draw", method=kind, skipna=False).drop_vars("quantile")  # type: ignore[arg-type]
        for q, kind in INTERVAL.values()
    ]
    return xr.concat(parts, "quantile").assign_coords(quantile=list(INTERVAL)).transpose("quantile", "step", ...)


def likelihoods(explanation: Explained) -> dict[int, list[dict[str, Any]]]:
    """Return the numbers of each label at every step that the classifier looked at."""
    if explanation.likelihood is None:
        return {}
    over = interval(explanation.likelihood)
    return {int(step): [numbers(*values) for values in over.sel(step=step).values.T] for step in over["step"].values}


def numbers(low: float, median: float, high: float) -> dict[str, Any]:
    """Return low, median and high of a label at a step, as numbers for a bar and as texts."""
    edges = {"low": low, "median": median, "high": high}
    ends = dict.fromkeys([likely(low), likely(high)])  # once, where both look the same
    return {
        **dict(zip(edges, rounded([*edges.values()]), strict=True)),
        "text": likely(median),
        "range": "–".join(ends),
    }


def likely(value: float) -> str:
    """Return a likelihood with three decimals; a value near 0 or 1 does not look like 0 or 1.

    >>> [likely(value) for value in (0.12345, 1e-5, 0.99999, 1.0, float("nan"))]
    ['0.123', '< 0.001', '> 0.999', '1', 'n/a']
    """
    if math.isnan(value):
        return "n/a"
    if 0 < value < 0.0005 or 0.9995 <= value < 1:
        return "< 0.001" if value < 0.5 else "> 0.999"
    return f"{value:.3f}" if 0 < value < 1 else f"{value:g}"


def recognition(explanation: Explained) -> dict[str, Any] | None:
    """Return the chart of the likelihoods, the table of their moments, and their facts; None without a likelihood."""
    likelihood, label = explanation.likelihood, explained_label(explanation)
    if likelihood is None or label is None:
        return None
    lines = keys([str(name) for name in likelihood["label"].values], label)
    return {
        "label": label,
        "draws": likelihood.sizes["draw"],
        "lines": lines,
        "chart": _likelihood_chart(explanation, label, lines),
        "moments": _moments(explanation.timing, lines),
    }


def _likelihood_chart(explanation: Explained, label: str, lines: Sequence[Key]) -> dict[str, Any]:
    """Return the chart of the likelihoods: ticks, lines, marks of the explained label, its critical window."""
    steps, timing = explanation.pictures["step"].values, explanation.timing
    over = interval(explanation.likelihood) if explanation.likelihood is not None else xr.DataArray()
    return {
        "ticks": level_ticks(timing),
        "lines": [{"key": key, **curve(over.sel(label=key.label), steps)} for key in lines],
        "marks": crossings(timing, label, len(steps)),
        "window": window(timing, label, len(steps)),
    }


def curve(over: xr.DataArray, steps: np.ndarray) -> dict[str, str]:
    """Return the line of a median (quantile, step) and the band from low to high, as paths in per cent of the box."""
    rows = {name: line(over.sel(quantile=name), column_middles(steps), 0, 1)["points"] for name in INTERVAL}
    if len(rows["median"]) == 1:  # a single point would be nothing to see: as wide as its column
        half = 50 / len(steps)
        rows = {name: [(x - half, y), (x + half, y)] for name, [(x, y)] in rows.items()}
    around = [*rows["high"], *reversed(rows["low"])]
    return {"path": path(rows["median"]), "band": f"{path(around)}Z" if around else ""}


def level_ticks(timing: xr.Dataset | None) -> list[tuple[float, str]]:
    """Return (place, text) of the rules at 0 and 1, and at the levels whose crossings are marked."""
    levels = [0.5] if timing is None else [float(level) for level in timing["level"].values]
    return [(100 * (1 - level), readable(level)) for level in sorted({0.0, *levels, 1.0})]


def crossings(timing: xr.Dataset | None, label: str, number: int) -> list[dict[str, Any]]:
    """Return a mark for every level that a label crosses: its place and interval in per cent, its frame in words."""
    if timing is None:
        return []
    marks = []
    for level in timing["level"].values:
        low, median, high = three(timing["crossing"].sel(label=label, level=level))
        if math.isfinite(median):
            ends = [100 * (x + 0.5) / number if math.isfinite(x) else 100 for x in (low, median, high)]
            marks.append(dict(zip(INTERVAL, ends, strict=True), y=100 * (1 - float(level)), at=readable(median)))
    return marks


def window(timing: xr.Dataset | None, label: str, number: int) -> dict[str, Any] | None:
    """Return the critical window, from the lowest level's median crossing to the highest's; None if one is missing."""
    if timing is None:
        return None
    medians = timing["crossing"].sel(label=label, quantile="median")
    first, last = (float(medians.isel(level=i)) for i in (0, -1))
    if not math.isfinite(first) or not math.isfinite(last):
        return None
    left, right = (100 * (x + 0.5) / number for x in (first, last))
    return {"left": left, "width": right - left, "first": readable(first), "last": readable(last)}


def spread(values: Sequence[float], form: Callable[[float], str] = readable, never: str = "never") -> str:
    """Return low, median and high in words; NaN is a moment that never came.

    >>> nan = float("nan")
    >>> spread([53.21, 55.94, nan]), spread([55.94] * 3), spread([nan] * 3)
    ('55.9 [53.2, never]', '55.9', 'never')
    """
    low, median, high = (never if math.isnan(value) else form(value) for value in values)
    return median if low == median == high else f"{median} [{low}, {high}]"


def _moments(timing: xr.Dataset | None, lines: Sequence[Key]) -> dict[str, Any] | None:
    """Return the table of the moments: a row for every label, its cells in words."""
    if timing is None:
        return None
    rows = [{"key": key, "cells": moment_cells(timing.sel(label=key.label))} for key in lines]
    return {"head": moment_head(timing), "rows": rows, "lasting": timing.attrs.get("lasting")}


def moment_head(timing: xr.Dataset) -> list[str]:
    """Return the heads of the table of moments: the levels, and two more."""
    return [*(readable(float(level)) for level in timing["level"].values), "steepest", "final likelihood"]


def moment_cells(timing: xr.Dataset) -> list[str]:
    """Return the moments of one label in words, in the order of `moment_head`."""
    crossed = [spread(three(timing["crossing"].sel(level=level))) for level in timing["level"].values]
    return [*crossed, spread(three(timing["steepest"])), spread(three(timing["final"]), likely, "n/a")]
