"""The leaderboard of an evaluation: means over scenes with their intervals, as a table, a page and plain values."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from .page import command_line, counted, facts, template


@dataclass(frozen=True)
class Measure:
    """How a measure is told: its title, what it asks, the ends of its scale, whether higher is better, and chance."""

    title: str
    question: str
    low: float
    high: float
    higher_is_better: bool | None
    chance: float | None = None
    text: str = ""


POINT = "Does the map point at the objects?"
CHANGE = "Does the model do what the map says?"
SAME = "Is the map the same again?"
SANE = "Does the map depend on what it explains?"
ATTACKED = "Can the map be moved without the picture, or the picture without the map?"

MEASURES = {
    "auroc": Measure("AUROC", POINT, 0, 1, True, 0.5, "Against the objects’ true places; 0.5 is chance."),
    "average_precision": Measure("average precision", POINT, 0, 1, True, None, "Chance is the objects’ share."),
    "best_iou": Measure("IoU, best threshold", POINT, 0, 1, True),
    "iou": Measure("IoU, the mask’s area", POINT, 0, 1, True),
    "pointing": Measure("pointing game", POINT, 0, 1, True, None, "Is the map’s maximum on an object?"),
    "spearman": Measure("rank correlation with the mask", POINT, -1, 1, True, 0.0),
    "mass_inside": Measure("share of the positive part inside", POINT, 0, 1, True),
    "deletion gain": Measure(
        "deletion, above random", CHANGE, -0.5, 0.5, True, 0.0,
        "How much more the next step changes when the map’s highest places are taken away first, than at random.",
    ),
    "insertion gain": Measure(
        "insertion, above random", CHANGE, -0.5, 0.5, True, 0.0,
        "How much faster the next step comes back when these places are given back first, than at random.",
    ),
    "deletion": Measure("deletion, area", CHANGE, 0, 1, True, None, "Of distances: higher is better."),
    "insertion": Measure("insertion, area", CHANGE, 0, 1, False, None, "Of distances: LOWER is better."),
    "infidelity_beyond_area": Measure(
        "infidelity beyond the area", CHANGE, 0, 1, False, 1.0,
        "What the map does not foretell of how the clean prediction changes when a square is taken away, once the "
        "square’s area is taken into account: LOWER is better, 1 foretells no more than a constant map.",
    ),
    "relative_infidelity": Measure(
        "relative infidelity", CHANGE, 0, 1, False, None,
        "The same without taking the area out: LOWER is better; any map of one sign foretells what the area does.",
    ),
    "resampling, picture": Measure(
        "resampling, whole picture", CHANGE, -1, 1, True, 0.0,
        "Does the picture change more when the map’s highest places get other noise than when others do?",
    ),
    "resampling, object": Measure("resampling, on the object", CHANGE, -1, 1, True, 0.0, "The same, inside the mask."),
    "seed agreement": Measure("other random masks", SAME, -1, 1, True, None, "Rank agreement under another seed."),
    "noise agreement": Measure("a little noise", SAME, -1, 1, True, None, "Rank agreement with 2 % of noise added."),
    "neighbour agreement": Measure("the step before", SAME, -1, 1, True, None, "Rank agreement with that step’s map."),
    "weights, above chance": Measure(
        "left when all weights are random", SANE, -0.5, 1, False, 0.0,
        "Rank agreement with the map’s own, of either sign, above the random level: LOWER is better. The check is "
        "passed where the whole interval is below 0.1, and failed where it is above 0 and reaches beyond that.",
    ),
    "weights, output": Measure("random last layer", SANE, -1, 1, None, None, "Rank agreement with the map’s own."),
    "weights, half": Measure("half of the weights random", SANE, -1, 1, None),
    "weights, all": Measure("all weights random", SANE, -1, 1, None, 0.0, "Should fall to the random level."),
    "chance": Measure(
        "random level", SANE, 0, 1, None, None,
        "What the two maps agree by chance, either way: the mean over all shifts of one of them.",
    ),
    "another prompt": Measure("another prompt", SANE, -1, 1, None, None, "Rank agreement under another prompt."),
    "attack, map": Measure(
        "map under attack", ATTACKED, -1, 1, True, None,
        "Rank agreement with itself after a searched-for change of x_t by 5 % that keeps the final picture.",
    ),
    "attack, random": Measure(
        "map under a random change", ATTACKED, -1, 1, True, None, "The same after a change as large, not searched for."
    ),
    "attack, picture": Measure(
        "picture under attack", ATTACKED, 0, 1, False, 0.0,
        "Root mean square change of the final picture, in units of its spread, that a search finds while the map "
        "stays: LOWER is better, as what the map does not see does not change the picture.",
    ),
}  # fmt: skip
"""Every measure of a trial; `evaluation.METRICS` has their sources."""

FIRST = ("auroc", "deletion gain", "insertion gain", "resampling, object", "noise agreement", "weights, above chance")
"""What the short table has, where it was measured."""


def table_of(scores: xr.Dataset, verdicts: Mapping[str, str]) -> dict[str, Any]:
    """The leaderboard as plain values: of every measure and method, mean, low, high and count at every step.

    Methods are ordered by the mean of the first measure there is, the best first, baselines among them.
    """
    score = scores["interval"]
    measures = [name for name in MEASURES if name in score["measure"].values]
    methods = _in_order(score, measures[0]) if measures else scores["attributor"].values.tolist()
    cells = {
        measure: {
            name: {
                str(step): _cell(score.sel(measure=measure, attributor=name, step=step))
                for step in score["step"].values.tolist()
            }
            for name in methods
        }
        for measure in measures
    }
    return {
        "scenes": scores.sizes.get("scene", 0),
        "steps": score["step"].values.tolist(),
        "methods": methods,
        "baselines": [name for name in methods if bool(scores["baseline"].sel(attributor=name))],
        "measures": cells,
        "sanity": dict(verdicts),
    }


def _in_order(score: xr.DataArray, measure: str) -> list[str]:
    means = score.sel(measure=measure, figure="mean").mean("step", skipna=True)
    sign = 1.0 if MEASURES[measure].higher_is_better is False else -1.0
    key = {name: sign * float(means.sel(attributor=name)) for name in score["attributor"].values.tolist()}
    return sorted(key, key=lambda name: (math.isnan(key[name]), key[name] if not math.isnan(key[name]) else 0.0))


def _cell(values: xr.DataArray) -> dict[str, float | int] | None:
    found = {str(name): float(values.sel(figure=name)) for name in values["figure"].values}
    if not math.isfinite(found["mean"]):
        return None
    return {**found, "count": int(found["count"])}


def cell_text(cell: Mapping[str, float] | None) -> str:
    """
    >>> cell_text({"mean": 0.915, "low": 0.8, "high": 0.96, "count": 50})
    '0.92 [0.80, 0.96]'
    """
    return "–" if cell is None else f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def short_rows(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table that the terminal shows: each measure as its mean over the steps' means."""
    shown = [name for name in FIRST if name in table["measures"]]
    checked = ["sanity check"] if table["sanity"] else []
    head = ["method", *(MEASURES[name].title for name in shown), *checked]
    rows = []
    for name in table["methods"]:
        own = f"({name})" if name in table["baselines"] else name
        cells = [_over_steps(table["measures"][measure][name], table["scenes"]) for measure in shown]
        rows.append([own, *cells, *(table["sanity"].get(name, "") for _ in checked)])
    return head, rows


def _over_steps(cells: Mapping[str, Mapping[str, float] | None], scenes: int) -> str:
    """The figures at each step that has one, with their number where it is not all scenes."""
    known = [cell for cell in cells.values() if cell is not None]
    counts = [f" of {cell['count']}" if cell["count"] != scenes else "" for cell in known]
    return "\n".join(f"{cell_text(cell)}{count}" for cell, count in zip(known, counts, strict=True)) or "–"


def render_leaderboard(table: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The page of an evaluation as text."""
    return template("leaderboard.html").render(
        title="Which explanation is true?",
        about=[
            f"model {run['model']}",
            counted(table["scenes"], "picture"),
            f"steps {', '.join(map(str, table['steps']))} of {run['steps']}",
            f"{run['num_masks']} masks",
        ],
        questions=list(_questions(table)),
        steps=table["steps"],
        sanity=[
            (name, table["sanity"][name], name in table["baselines"])
            for name in table["methods"]
            if name in table["sanity"]
        ],
        failures=[(what, each["times"], each["first"]) for what, each in run["failures"].items()],
        options=facts(
            {name: run[name] for name in ("guidance", "checks", "encoder", "seed") if run.get(name) is not None}
        ),
        seconds=[(name, f"{spent:.1f}") for name, spent in run["seconds"].items()],
        command=command_line(run["command"]),
        versions=facts(run["versions"]),
    )


def _questions(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each question with its measures, and of each the rows of its table."""
    for question in dict.fromkeys(measure.question for measure in MEASURES.values()):
        own = [name for name in table["measures"] if MEASURES[name].question == question]
        if own:
            yield {"title": question, "measures": [_shown(name, table) for name in own]}


def _shown(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    measure, cells = MEASURES[name], table["measures"][name]
    steps = [str(step) for step in table["steps"] if any(row[str(step)] for row in cells.values())]
    rows = [
        {
            "method": method,
            "baseline": method in table["baselines"],
            "cells": [_bar(measure, cells[method][step]) for step in steps],
        }
        for method in table["methods"]
        if any(cells[method].values())
    ]
    chance = None if measure.chance is None else _place(measure, measure.chance)
    return {"title": measure.title, "text": measure.text, "steps": steps, "rows": rows, "chance": chance}


def _bar(measure: Measure, cell: Mapping[str, float] | None) -> dict[str, Any]:
    """A figure, and in per cent of its scale where it and its interval are."""
    if cell is None:
        return {"text": "–", "dot": None}
    low, high = _place(measure, cell["low"]), _place(measure, cell["high"])
    return {
        "text": cell_text(cell),
        "dot": _place(measure, cell["mean"]),
        "low": low,
        "width": high - low,
        "count": cell["count"],
    }


def _place(measure: Measure, value: float) -> float:
    share = (value - measure.low) / (measure.high - measure.low)
    return round(100 * min(max(share, 0.0), 1.0), 2)


def with_intervals(scores: xr.Dataset, summed_up: xr.Dataset) -> xr.Dataset:
    """The scores with `interval` (measure, attributor, step, figure) beside them."""
    figures = [summed_up[name].astype(float) for name in ("mean", "low", "high", "count")]
    names = xr.DataArray(["mean", "low", "high", "count"], dims="figure", name="figure")
    return scores.assign(interval=xr.concat(figures, names))
