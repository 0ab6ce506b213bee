"""The likelihood of each label as a page shows it: lines and bands over draws, crossings, the table of the moments."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..figures.results import Explained, three
from ..figures.theme import DASHES, Key, hue_and_dash, readable
from .page import column_middles, line, path, rounded

# Labels have hues of their own, dark and light enough for both grounds, so that no line is taken for a method's.
LABEL_HUES = ("#b8498a", "#b07d00", "#2f8fc4", "#7b6be0", "#4b8f4f")
LABEL_DASHES = DASHES[1:]
"""The dashes of the labels that are not explained."""
INTERVAL = {"low": (0.05, "lower"), "median": (0.5, "linear"), "high": (0.95, "higher")}
"""Over draws: the median, and the interval that holds at least 90 % of them."""


def explained_label(explanation: Explained) -> str | None:
    """The label whose maps these are: the run says it, and it is the first one where it does not."""
    likelihood, said = explanation.likelihood, explanation.run.get("label")
    labels = [] if likelihood is None else [str(label) for label in likelihood["label"].values]
    return str(said) if said in labels else next(iter(labels), None)


def keys(labels: Sequence[str], explained: str | None) -> list[Key]:
    """Return a hue and a dash for every label, so that lines are told apart without colours too."""
    others = [label for label in labels if label != explained]
    looks = {label: hue_and_dash(i, LABEL_HUES, LABEL_DASHES) for i, label in enumerate(others)}
    if explained is not None:
        looks[explained] = ("var(--ink)", "none")
    return [Key(label, *looks[label], explained=label == explained) for label in labels]


def interval(likelihood: xr.DataArray) -> xr.DataArray:
    """(quantile, step, label): low, median and high over draws."""
    parts: list[xr.DataArray] = [
        likelihood.quantile(q, "draw", method=kind, skipna=False).drop_vars("quantile")  # type: ignore[arg-type]
        for q, kind in INTERVAL.values()
    ]
    return xr.concat(parts, "quantile").assign_coords(quantile=list(INTERVAL)).transpose("quantile", "step", ...)


def likelihoods(explanation: Explained) -> dict[int, list[dict[str, Any]]]:
    """Of every step the classifier has looked at, each label's numbers."""
    if explanation.likelihood is None:
        return {}
    over = interval(explanation.likelihood)
    return {int(step): [numbers(*values) for values in over.sel(step=step).values.T] for step in over["step"].values}


def numbers(low: float, median: float, high: float) -> dict[str, Any]:
    """The three as what they look like and as what they are, of one label at one step."""
    edges = {"low": low, "median": median, "high": high}
    ends = dict.fromkeys([likely(low), likely(high)])  # once, where both look the same
    return {
        **dict(zip(edges, rounded([*edges.values()]), strict=True)),
        "text": likely(median),
        "range": "–".join(ends),
    }


def likely(value: float) -> str:
    """A likelihood to three decimals; what would look like 0 or 1 and is not says so.

    >>> [likely(value) for value in (0.12345, 1e-5, 0.99999, 1.0, float("nan"))]
    ['0.123', '< 0.001', '> 0.999', '1', 'n/a']
    """
    if math.isnan(value):
        return "n/a"
    if 0 < value < 0.0005 or 0.9995 <= value < 1:
        return "< 0.001" if value < 0.5 else "> 0.999"
    return f"{value:.3f}" if 0 < value < 1 else f"{value:g}"


def recognition(explanation: Explained) -> dict[str, Any] | None:
    """The chart of the likelihoods, the table of their moments, and what the template says about them."""
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
    steps, timing = explanation.pictures["step"].values, explanation.timing
    over = interval(explanation.likelihood) if explanation.likelihood is not None else xr.DataArray()
    return {
        "ticks": level_ticks(timing),
        "lines": [{"key": key, **curve(over.sel(label=key.label), steps)} for key in lines],
        "marks": crossings(timing, label, len(steps)),
        "window": window(timing, label, len(steps)),
    }


def curve(over: xr.DataArray, steps: np.ndarray) -> dict[str, str]:
    """The line of a median (quantile, step) and the band between low and high, as paths in per cent of the box."""
    rows = {name: line(over.sel(quantile=name), column_middles(steps), 0, 1)["points"] for name in INTERVAL}
    if len(rows["median"]) == 1:  # a single point would be nothing to see: as wide as its column
        half = 50 / len(steps)
        rows = {name: [(x - half, y), (x + half, y)] for name, [(x, y)] in rows.items()}
    around = [*rows["high"], *reversed(rows["low"])]
    return {"path": path(rows["median"]), "band": f"{path(around)}Z" if around else ""}


def level_ticks(timing: xr.Dataset | None) -> list[tuple[float, str]]:
    """Rules at 0 and 1, and at the levels whose crossings are marked."""
    levels = [0.5] if timing is None else [float(level) for level in timing["level"].values]
    return [(100 * (1 - level), readable(level)) for level in sorted({0.0, *levels, 1.0})]


def crossings(timing: xr.Dataset | None, label: str, number: int) -> list[dict[str, Any]]:
    """A mark for every level that a label crosses: where (per cent), in what interval, at which frame in words."""
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
    """The critical window, from the lowest level's median crossing to the highest's; None where one is missing."""
    if timing is None:
        return None
    found = timing["crossing"].sel(label=label, quantile="median")
    first, last = (float(found.isel(level=i)) for i in (0, -1))
    if not math.isfinite(first) or not math.isfinite(last):
        return None
    left, right = (100 * (x + 0.5) / number for x in (first, last))
    return {"left": left, "width": right - left, "first": readable(first), "last": readable(last)}


def spread(values: Sequence[float], form: Callable[[float], str] = readable, never: str = "never") -> str:
    """Low, median and high in words; NaN is a moment that never came.

    >>> nan = float("nan")
    >>> spread([53.21, 55.94, nan]), spread([55.94] * 3), spread([nan] * 3)
    ('55.9 [53.2, never]', '55.9', 'never')
    """
    low, median, high = (never if math.isnan(value) else form(value) for value in values)
    return median if low == median == high else f"{median} [{low}, {high}]"


def _moments(timing: xr.Dataset | None, lines: Sequence[Key]) -> dict[str, Any] | None:
    """The table of the moments: a row for every label, its cells in words."""
    if timing is None:
        return None
    rows = [{"key": key, "cells": moment_cells(timing.sel(label=key.label))} for key in lines]
    return {"head": moment_head(timing), "rows": rows, "lasting": timing.attrs.get("lasting")}


def moment_head(timing: xr.Dataset) -> list[str]:
    return [*(readable(float(level)) for level in timing["level"].values), "steepest", "final likelihood"]


def moment_cells(own: xr.Dataset) -> list[str]:
    """The moments of one label, in the order of `moment_head`."""
    found = [spread(three(own["crossing"].sel(level=level))) for level in own["level"].values]
    return [*found, spread(three(own["steepest"])), spread(three(own["final"]), likely, "n/a")]
