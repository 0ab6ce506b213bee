"""The page of several photographs: the same frame of each, and the order in which they are recognised.

Every photograph has a page of its own beside this one, in the folder that has its name.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from ..errors import InputError
from ..figures.results import Explained, unit_of
from ..figures.theme import ALPHA, HUES, Key, hue_and_dash
from .caveats import AGAIN, Caveat, warnings
from .likelihood import crossings, curve, explained_label, interval, level_ticks, moment_cells, moment_head, numbers
from .maps import CARD_CELLS, CARD_MAPS, PageResult, averaged, fewer_cells, nearest_maps
from .page import (
    NOISE_QUALITY,
    NOISED_WORDS,
    as_json,
    clipped_share,
    command_line,
    counted,
    palettes,
    picture_uri,
    place_numbers,
    step_ticks,
    template,
)

CARD_SIDE, FRAMES = 128, 400
"""Pixels of a frame's longer side, for up to so many frames in all; more frames are smaller."""


def render_photographs(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> str:
    """Return the whole page as text; the page of each photograph is expected at `NAME/report.html`.

    `run` is the record of the command; its classifier, frames, draws and `failures` are on the page. Raises
    `InputError` if there is no explanation.
    """
    if not explanations:
        raise InputError("There is nothing to compare. Give the explanation of at least one photograph.")
    keys = _keys(explanations)
    results = _first_results(explanations)
    longest = max((each.pictures for each in explanations.values()), key=lambda pictures: pictures.sizes["step"])
    timings = [each.timing for each in explanations.values() if each.timing is not None]
    return template("photographs.html").render(
        title="When is each photograph recognised?",
        about=_about(explanations, run, longest),
        unit=unit_of(longest),
        steps=longest["step"].values,
        clipped=clipped_share(),
        cards=[_card(name, each, keys[name], results[name]) for name, each in explanations.items()],
        lines=list(_lines(explanations, keys, longest["step"].values)),
        ticks=level_ticks(next(iter(timings), None)),
        axis_ticks=step_ticks(longest["step"].values),
        head=moment_head(timings[0]) if timings else [],
        rows=_rows(explanations),
        lasting=timings[0].attrs.get("lasting") if timings else None,
        draws=max(_draws(each) for each in explanations.values()),
        warnings=list(_warnings(run)),
        command=command_line(run.get("command")),
        alpha=ALPHA,
        payload=_payload(explanations, results, longest),
    )


def _about(explanations: Mapping[str, Explained], run: Mapping[str, Any], longest: xr.Dataset) -> list[str]:
    """Return the facts that the photographs share, from the command's record or else the first photograph's."""
    first = next(iter(explanations.values())).run
    forms = {"classifier": "classifier {}", **NOISED_WORDS, "created": "{}"}
    values = {name: run.get(name, first.get(name)) for name in forms}
    texts = [form.format(values[name]) for name, form in forms.items() if values[name] is not None]
    number = counted(longest.sizes["step"], unit_of(longest))
    return [counted(len(explanations), "photograph"), number, *texts]


def _warnings(run: Mapping[str, Any]) -> Iterator[Caveat]:
    """Yield a caveat for a stopped run and for each photograph that failed."""
    if run.get("interrupted"):
        yield Caveat("This run was stopped before it was finished.", f"What was finished is here. {AGAIN}")
    for name, message in (run.get("failures") or {}).items():
        yield Caveat(f"{name} is not here.", str(message))


def _keys(explanations: Mapping[str, Explained]) -> dict[str, Key]:
    """Return the look of every photograph's line, named after the photograph and its own label."""
    keys = {}
    for i, (name, explanation) in enumerate(explanations.items()):
        label = explained_label(explanation)
        keys[name] = Key(f"{name}, {label}" if label else name, *hue_and_dash(i), explained=True)
    return keys


def _first_results(explanations: Mapping[str, Explained]) -> dict[str, PageResult | None]:
    """Return the result of each photograph's first method, with so few cells that all maps together stay small."""
    first = {name: next(iter(each.methods().items()), None) for name, each in explanations.items()}
    maps = sum(entry[1].sizes["step"] for entry in first.values() if entry is not None)
    cells = fewer_cells(CARD_CELLS, CARD_MAPS, maps)
    return {name: None if entry is None else averaged(*entry, HUES[0], cells) for name, entry in first.items()}


def _card(name: str, explanation: Explained, key: Key, result: PageResult | None) -> dict[str, Any]:
    """Return a photograph's card for the template; its frames and maps are in the payload."""
    picture, caveats = explanation.pictures["image"].values, warnings(explanation)
    return {
        "name": name,
        "link": _link(name),
        "key": key,
        "label": explained_label(explanation),
        "picture": picture_uri(picture, 2 * CARD_SIDE),
        "aspect": "{1} / {0}".format(*picture.shape),
        "method": result.title if result else None,
        "draws": _draws(explanation),
        "caveats": counted(len(caveats), "thing") if caveats else "",
    }


def _link(name: str) -> str:
    """Return the address of a photograph's own page."""
    return f"{quote(name, safe='')}/report.html"


def _draws(explanation: Explained) -> int:
    """Return the number of noise draws of a photograph's likelihood."""
    return 1 if explanation.likelihood is None else explanation.likelihood.sizes["draw"]


def _lines(
    explanations: Mapping[str, Explained], keys: Mapping[str, Key], steps: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield the curve of every photograph's own label, with the marks of its crossings."""
    for name, explanation in explanations.items():
        label, over = explained_label(explanation), _own_interval(explanation)
        if label is not None and over is not None:
            marks = crossings(explanation.timing, label, len(steps))
            yield {"key": keys[name], **curve(over, steps), "marks": marks}


def _own_interval(explanation: Explained) -> xr.DataArray | None:
    """Return the likelihood of a photograph's own label, (quantile, step); None if it is not known."""
    label = explained_label(explanation)
    if explanation.likelihood is None or label is None:
        return None
    return interval(explanation.likelihood.sel(label=[label])).isel(label=0)


def _rows(explanations: Mapping[str, Explained]) -> list[dict[str, Any]]:
    """Return a row for each photograph and label, the earliest onset first and labels that never rise last."""
    rows = [row for name, explanation in explanations.items() for row in _rows_of(name, explanation)]
    return sorted(rows, key=lambda row: float(row["onset"]))


def _rows_of(name: str, explanation: Explained) -> Iterator[dict[str, Any]]:
    """Yield a row for each label of one photograph."""
    timing, own_label = explanation.timing, explained_label(explanation)
    if timing is None:
        return
    for label in timing["label"].values:
        moments = timing.sel(label=label)
        onset = float(moments["crossing"].isel(level=0).sel(quantile="median"))
        yield {
            "name": name,
            "link": _link(name),
            "label": str(label),
            "own": str(label) == own_label,
            "cells": moment_cells(moments),
            "onset": onset if math.isfinite(onset) else math.inf,
        }


def _payload(
    explanations: Mapping[str, Explained], results: Mapping[str, PageResult | None], longest: xr.Dataset
) -> str:
    """Return the JSON that the page's script reads."""
    number = sum(explanation.pictures.sizes["step"] for explanation in explanations.values())
    side = max(1, int(CARD_SIDE * min(1.0, math.sqrt(FRAMES / number))))
    content = {
        "start": _start(explanations, longest),
        "unit": unit_of(longest),
        "steps": [place_numbers(longest.sel(step=step)) for step in longest["step"].values],
        "photographs": [_photograph(each, results[name], side) for name, each in explanations.items()],
        "colours": palettes(),
    }
    return as_json(content)


def _start(explanations: Mapping[str, Explained], longest: xr.Dataset) -> int:
    """Return the step to open on: the median over photographs of the crossings of the middle level."""
    marks = []
    for explanation in explanations.values():
        label = explained_label(explanation)
        if explanation.timing is not None and label is not None:
            levels = explanation.timing["crossing"].sel(label=label, quantile="median")
            marks.append(float(levels.isel(level=levels.sizes["level"] // 2)))
    reached = [mark for mark in marks if math.isfinite(mark)]
    at = round(float(np.median(reached))) if reached else longest.sizes["step"] - 1
    return int(longest["step"].values[at])


def _photograph(explanation: Explained, result: PageResult | None, side: int) -> dict[str, Any]:
    """Return a photograph's frames, the maps of its first method, and the likelihood of its own label at each frame."""
    frames = explanation.pictures["sample"].values
    return {
        "frames": [picture_uri(frame, side, NOISE_QUALITY) for frame in frames],
        "likelihood": _own_likelihood(explanation),
        **nearest_maps(result),
    }


def _own_likelihood(explanation: Explained) -> dict[int, dict[str, Any]]:
    """Return the numbers of a photograph's own label at each step."""
    over = _own_interval(explanation)
    if over is None:
        return {}
    return {int(step): numbers(*over.sel(step=step).values) for step in over["step"].values}
