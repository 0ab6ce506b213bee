"""The leaderboard of an evaluation: means over scenes with their intervals, as a table, a page and plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import xarray as xr

from ..errors import InputError, did_you_mean
from .page import command_line, counted, table_rows, template


@dataclass(frozen=True)
class MeasureFacts:
    """The facts of a measure: its title and text, the question that it answers, its scale, its direction and chance.

    `low` and `high` end the scale of its bars. `higher_is_better` is None if neither direction is better, and `chance`
    None if chance is not known. `short` measures stand in the terminal's table.
    """

    title: str
    question: str
    low: float
    high: float
    higher_is_better: bool | None
    chance: float | None = None
    text: str = ""
    short: bool = False

    def place(self, value: float) -> float:
        """Return the place of a value on the scale in per cent, at most at its ends.

        >>> MeasureFacts("AUROC", "", 0, 1, True).place(0.25)
        25.0
        """
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def facts_of(table: Mapping[str, Any]) -> dict[str, MeasureFacts]:
    """Return the facts of the measures in a leaderboard."""
    return {name: MeasureFacts(**values) for name, values in table["facts"].items()}


def table_of(scores: xr.Dataset, verdicts: Mapping[str, str], facts: Mapping[str, MeasureFacts]) -> dict[str, Any]:
    """Return the leaderboard as plain values: of every measure and method, mean, low, high and count at every step.

    Measures stand in the order of `facts`. Methods are ordered by the mean of the first measure there is, the best
    first, baselines among them. Raises `InputError` for a measure without facts.
    """
    score = scores["interval"]
    measured = score["measure"].values.tolist()
    _refuse_unknown(measured, facts)
    measures = [name for name in facts if name in measured]
    methods = scores["attributor"].values.tolist()
    if measures:
        methods = _in_order(score.sel(measure=measures[0]), facts[measures[0]])
    return {
        "scenes": scores.sizes.get("scene", 0),
        "steps": score["step"].values.tolist(),
        "methods": methods,
        "baselines": [name for name in methods if bool(scores["baseline"].sel(attributor=name))],
        "measures": {measure: _rows_of(score.sel(measure=measure), methods) for measure in measures},
        "sanity": dict(verdicts),
        "facts": {measure: asdict(facts[measure]) for measure in measures},
    }


def _refuse_unknown(measures: Sequence[str], facts: Mapping[str, MeasureFacts]) -> None:
    for name in measures:
        if name not in facts:
            raise InputError(f'The measure "{name}" has no facts. {did_you_mean(name, facts)} Add its facts.')


def _rows_of(score: xr.DataArray, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the cells of a measure's (attributor, step, figure), by method and step."""
    rows: dict[str, dict[str, Any]] = {}
    for name in methods:
        of_method = score.sel(attributor=name)
        rows[name] = {str(step): _cell(of_method.sel(step=step)) for step in score["step"].values.tolist()}
    return rows


def _in_order(score: xr.DataArray, facts: MeasureFacts) -> list[str]:
    """Return the methods from the best to the worst by the mean over steps, those without one last."""
    means = score.sel(figure="mean").mean("step", skipna=True)
    sign = 1.0 if facts.higher_is_better is False else -1.0
    ranked, unmeasured = {}, []
    for name in score["attributor"].values.tolist():
        mean = float(means.sel(attributor=name))
        if math.isnan(mean):
            unmeasured.append(name)
        else:
            ranked[name] = sign * mean
    return sorted(ranked, key=ranked.__getitem__) + unmeasured


def _cell(values: xr.DataArray) -> dict[str, float | int] | None:
    """Return the interval of a figure; None if there is none."""
    interval = {str(name): float(values.sel(figure=name)) for name in values["figure"].values}
    if not math.isfinite(interval["mean"]):
        return None
    return {**interval, "count": int(interval["count"])}


def cell_text(cell: Mapping[str, float] | None) -> str:
    """Return a mean with its interval.

    >>> cell_text({"mean": 0.915, "low": 0.8, "high": 0.96, "count": 50})
    '0.92 [0.80, 0.96]'
    """
    return "–" if cell is None else f"{cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"


def short_rows(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the terminal's table: the short measures, a line for each step."""
    facts = facts_of(table)
    measures = [name for name in table["measures"] if facts[name].short]
    head = ["method", *(facts[name].title for name in measures)]
    if table["sanity"]:
        head.append("sanity check")
    rows = []
    for name in table["methods"]:
        row = [f"({name})" if name in table["baselines"] else name]
        row += [_lines(table["measures"][measure][name], table["scenes"]) for measure in measures]
        if table["sanity"]:
            row.append(table["sanity"].get(name, ""))
        rows.append(row)
    return head, rows


def _lines(cells: Mapping[str, Mapping[str, float] | None], scenes: int) -> str:
    """Return a line for each step that has a figure, with the number of scenes if it is not all of them."""
    lines = []
    for cell in cells.values():
        if cell is not None:
            count = "" if cell["count"] == scenes else f" of {cell['count']}"
            lines.append(f"{cell_text(cell)}{count}")
    return "\n".join(lines) or "–"


def render_leaderboard(table: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return the page of an evaluation; `run` is the content of its run.json."""
    options = {name: run[name] for name in ("guidance", "checks", "encoder", "seed") if run.get(name) is not None}
    verdicts = []
    for name in table["methods"]:
        if name in table["sanity"]:
            verdicts.append((name, table["sanity"][name], name in table["baselines"]))
    return template("leaderboard.html").render(
        title="Which explanation is true?",
        about=[
            f"model {run['model']}",
            counted(table["scenes"], "picture"),
            f"steps {', '.join(map(str, table['steps']))} of {run['steps']}",
            f"{run['num_masks']} masks",
        ],
        questions=_questions(table),
        steps=table["steps"],
        sanity=verdicts,
        failures=[(name, failure["times"], failure["first"]) for name, failure in run["failures"].items()],
        options=table_rows(options),
        seconds=[(name, f"{seconds:.1f}") for name, seconds in run["seconds"].items()],
        command=command_line(run["command"]),
        versions=table_rows(run["versions"]),
    )


def _questions(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each question with the tables of its measures."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for name, measure in facts_of(table).items():
        panels.setdefault(measure.question, []).append(_panel(measure, table["measures"][name], table))
    return [{"title": question, "measures": measures} for question, measures in panels.items()]


def _panel(measure: MeasureFacts, cells: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of a measure: the steps and the methods that have figures."""
    every_step = [str(step) for step in table["steps"]]
    steps = [step for step in every_step if any(row[step] for row in cells.values())]
    rows = []
    for method in table["methods"]:
        if any(cells[method].values()):
            bars = [_bar(measure, cells[method][step]) for step in steps]
            rows.append({"method": method, "baseline": method in table["baselines"], "cells": bars})
    chance = None if measure.chance is None else measure.place(measure.chance)
    return {"title": measure.title, "text": measure.text, "steps": steps, "rows": rows, "chance": chance}


def _bar(measure: MeasureFacts, cell: Mapping[str, float] | None) -> dict[str, Any]:
    """Return a figure as text, with the places of its mean and interval in per cent of the scale."""
    if cell is None:
        return {"text": "–", "dot": None}
    low, high = measure.place(cell["low"]), measure.place(cell["high"])
    return {
        "text": cell_text(cell),
        "dot": measure.place(cell["mean"]),
        "low": low,
        "width": high - low,
        "count": cell["count"],
    }


def with_intervals(scores: xr.Dataset, summary: xr.Dataset) -> xr.Dataset:
    """Return the scores with `interval` (measure, attributor, step, figure) beside them."""
    names = ("mean", "low", "high", "count")
    figures = [summary[name].astype(float) for name in names]
    return scores.assign(interval=xr.concat(figures, xr.DataArray(list(names), dims="figure", name="figure")))
