"""One page for several photographs: the same frame of each, and when each is recognised.

Every photograph has a page of its own beside this one, in the folder that has its name.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from ..errors import InputError
from ..figures.results import Explained, explained_steps, unit_of
from ..figures.theme import ALPHA, HUES, Key
from .caveats import AGAIN, Warn, warnings
from .likelihood import (
    DASHES,
    crossings,
    curve,
    explained_label,
    interval,
    level_ticks,
    moment_cells,
    moment_head,
    numbers,
)
from .maps import Shown, packed, shown_attribution
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

FRAME_SIDE, FRAMES = 128, 400
"""Pixels of a frame's longer side, for up to so many frames in all; of more each gets smaller."""
MAP_CELLS, MAPS = 32, 400
"""Cells on a side of a map, for up to so many maps in all; more maps have fewer cells."""


def render_comparison(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> str:
    """The whole page as text; the page of each photograph is expected at `NAME/report.html`.

    `run` is the record of the command: what it says of classifier, frames, draws and `failures` is shown. Raises
    `InputError` where there is nothing to compare.
    """
    if not explanations:
        raise InputError("There is nothing to compare. Give the explanation of at least one photograph.")
    keys, cells = _keys(explanations), _cells(explanations)
    maps = {name: _first_method(explanation, cells) for name, explanation in explanations.items()}
    longest = max(
        (explanation.pictures for explanation in explanations.values()), key=lambda pictures: pictures.sizes["step"]
    )
    timings = [explanation.timing for explanation in explanations.values() if explanation.timing is not None]
    return template("comparison.html").render(
        title="When is each photograph recognised?",
        about=_about(explanations, run, longest),
        unit=unit_of(longest),
        steps=longest["step"].values,
        clipped=clipped_share(),
        cards=[_card(name, each, keys[name], maps[name]) for name, each in explanations.items()],
        lines=list(_lines(explanations, keys, longest["step"].values)),
        ticks=level_ticks(next(iter(timings), None)),
        axis_ticks=step_ticks(longest["step"].values),
        head=moment_head(timings[0]) if timings else [],
        rows=_rows(explanations),
        lasting=timings[0].attrs.get("lasting") if timings else None,
        draws=max(_draws(explanation) for explanation in explanations.values()),
        warnings=list(_warnings(run)),
        command=command_line(run.get("command")),
        alpha=ALPHA,
        payload=_payload(explanations, maps, longest),
    )


def _about(explanations: Mapping[str, Explained], run: Mapping[str, Any], longest: xr.Dataset) -> list[str]:
    """What the photographs have in common; the record of the first one says what the command's does not."""
    first = next(iter(explanations.values())).run
    common = {"classifier": "classifier {}", **NOISED_WORDS, "created": "{}"}
    known = {name: run.get(name, first.get(name)) for name in common}
    said = [form.format(known[name]) for name, form in common.items() if known[name] is not None]
    number = counted(longest.sizes["step"], unit_of(longest))
    return [counted(len(explanations), "photograph"), number, *said]


def _warnings(run: Mapping[str, Any]) -> Iterator[Warn]:
    if run.get("interrupted"):
        yield Warn("This run was stopped before it was finished.", f"What was finished is here. {AGAIN}")
    for name, message in (run.get("failures") or {}).items():
        yield Warn(f"{name} is not here.", str(message))


def _keys(explanations: Mapping[str, Explained]) -> dict[str, Key]:
    """A line's look for every photograph, named after it and its own label."""
    found = {}
    for i, (name, explanation) in enumerate(explanations.items()):
        label = explained_label(explanation)
        title = f"{name}, {label}" if label else name
        found[name] = Key(title, HUES[i % len(HUES)], (["none", *DASHES])[i % (len(DASHES) + 1)], True)
    return found


def _cells(explanations: Mapping[str, Explained]) -> int:
    """Cells on a side of a map, so that all the maps together stay small."""
    first = [next(iter(explanation.methods().values()), None) for explanation in explanations.values()]
    number = sum(result.sizes["step"] for result in first if result is not None)
    return max(1, int(MAP_CELLS * min(1.0, math.sqrt(MAPS / max(1, number)))))


def _first_method(explanation: Explained, cells: int) -> Shown | None:
    for name, result in explanation.methods().items():
        return shown_attribution(name, result, HUES[0], cells)
    return None


def _card(name: str, explanation: Explained, key: Key, shown: Shown | None) -> dict[str, Any]:
    """What the template says about a photograph; its frames and maps are in the payload."""
    picture, doubts = explanation.pictures["image"].values, warnings(explanation)
    return {
        "name": name,
        "link": _link(name),
        "key": key,
        "label": explained_label(explanation),
        "picture": picture_uri(picture, 2 * FRAME_SIDE),
        "aspect": "{1} / {0}".format(*picture.shape),
        "method": shown.title if shown else None,
        "draws": _draws(explanation),
        "doubts": counted(len(doubts), "thing") if doubts else "",
    }


def _link(name: str) -> str:
    return f"{quote(name, safe='')}/report.html"


def _draws(explanation: Explained) -> int:
    return 1 if explanation.likelihood is None else explanation.likelihood.sizes["draw"]


def _lines(
    explanations: Mapping[str, Explained], keys: Mapping[str, Key], steps: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The curve of every photograph's own label, with the marks of its crossings."""
    for name, explanation in explanations.items():
        label = explained_label(explanation)
        if explanation.likelihood is None or label is None:
            continue
        over = interval(explanation.likelihood.sel(label=[label])).isel(label=0)
        yield {
            "key": keys[name],
            **curve(over, steps),
            "marks": crossings(explanation.timing, label, len(steps)),
        }


def _rows(explanations: Mapping[str, Explained]) -> list[dict[str, Any]]:
    """A row for each photograph and label, the earliest onset first and those that never rise last."""
    rows = [row for name, explanation in explanations.items() for row in _rows_of(name, explanation)]
    return sorted(rows, key=lambda row: row["onset"])


def _rows_of(name: str, explanation: Explained) -> Iterator[dict[str, Any]]:
    timing, own = explanation.timing, explained_label(explanation)
    if timing is None:
        return
    for label in timing["label"].values:
        found = timing.sel(label=label)
        onset = float(found["crossing"].isel(level=0).sel(quantile="median"))
        yield {
            "name": name,
            "link": _link(name),
            "label": str(label),
            "own": str(label) == own,
            "cells": moment_cells(found),
            "onset": onset if math.isfinite(onset) else math.inf,
        }


def _payload(explanations: Mapping[str, Explained], maps: Mapping[str, Shown | None], longest: xr.Dataset) -> str:
    number = sum(explanation.pictures.sizes["step"] for explanation in explanations.values())
    side = max(1, int(FRAME_SIDE * min(1.0, math.sqrt(FRAMES / number))))
    content = {
        "start": _start(explanations, longest),
        "unit": unit_of(longest),
        "steps": [place_numbers(longest.sel(step=step)) for step in longest["step"].values],
        "photographs": [_photograph(each, maps[name], side) for name, each in explanations.items()],
        "colours": palettes(),
    }
    return as_json(content)


def _start(explanations: Mapping[str, Explained], longest: xr.Dataset) -> int:
    """Open where half of the photographs are recognised: the median of the crossings of the middle level."""
    marks = []
    for explanation in explanations.values():
        label = explained_label(explanation)
        if explanation.timing is not None and label is not None:
            levels = explanation.timing["crossing"].sel(label=label, quantile="median")
            marks.append(float(levels.isel(level=levels.sizes["level"] // 2)))
    known = [mark for mark in marks if math.isfinite(mark)]
    at = round(float(np.median(known))) if known else longest.sizes["step"] - 1
    return int(longest["step"].values[at])


def _photograph(explanation: Explained, shown: Shown | None, side: int) -> dict[str, Any]:
    """The frames of a photograph, the maps of its first method, and the likelihood of its own label at each frame."""
    frames = explanation.pictures["sample"].values
    return {
        "frames": [picture_uri(frame, side, NOISE_QUALITY) for frame in frames],
        "likelihood": _own_likelihood(explanation),
        **_maps(shown),
    }


def _own_likelihood(explanation: Explained) -> dict[int, dict[str, Any]]:
    label = explained_label(explanation)
    if explanation.likelihood is None or label is None:
        return {}
    over = interval(explanation.likelihood.sel(label=[label])).isel(label=0)
    return {int(step): numbers(*over.sel(step=step).values) for step in over["step"].values}


def _maps(shown: Shown | None) -> dict[str, Any]:
    if shown is None:
        return {"title": "", "maps": {}, "limits": [0, 0], "shape": [0, 0], "colours": ""}
    steps = explained_steps(shown.result)
    maps = {step: shown.result["saliency"].sel(step=step).transpose("y", "x").values for step in steps}
    return {
        "title": shown.title,
        "maps": {step: packed(values) for step, values in maps.items()},
        "limits": [shown.limits.low, shown.limits.high],
        "shape": [shown.result.sizes["y"], shown.result.sizes["x"]],
        "colours": shown.limits.cmap().name,
    }
