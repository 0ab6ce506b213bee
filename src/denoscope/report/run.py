"""One self-contained HTML page for an explanation: one step control moves every panel.

Python makes the numbers, the words and the pictures; `templates/report.js` draws the maps from the raw values that
the page carries, so that what a reader points at is what the array holds (to four significant digits).

Where a classifier looked on, the page follows the likelihood of its labels too. Its maps have a value for every pixel
and draw of a noised photograph: the page carries their means over draws and blocks, and says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..figures.overlays import overlay
from ..figures.results import (
    Explained,
    captions_of,
    clean_pictures,
    explained_steps,
    is_layered,
    is_noised,
    layers,
    unit_of,
)
from ..figures.scales import Limits
from ..figures.theme import ALPHA
from .caveats import signatures, warnings
from .likelihood import likelihoods, recognition
from .maps import Shown, raw_maps, shown_methods
from .page import (
    EXACT_SIDE,
    LARGEST_SIDE,
    NOISE_QUALITY,
    NOISED_WORDS,
    across,
    as_json,
    clipped_share,
    command_line,
    counted,
    facts,
    gradient,
    is_series,
    line,
    palettes,
    picture_uri,
    place_numbers,
    span,
    step_ticks,
    template,
)
from .words import word_charts

THUMBNAILS, STRIP_WIDTH = 25, 1400
"""Of a noised photograph the strip shows this many frames at most; all of them together have so many pixels."""
FULL_FRAMES = 100
"""Up to so many noised frames are carried at full size."""
TOLD_ELSEWHERE = {
    "command", "methods", "versions", "seconds", "steps", "timesteps", "interrupted", "prompt", "created", "diagnosis"
}  # fmt: skip
SHOWN_WITH_THE_MAP = {"title", "reading"}


def render(explanation: Explained) -> str:
    """The whole page as text; it needs no network and opens from a file."""
    pictures, run, shown = explanation.pictures, explanation.run, shown_methods(explanation)
    titles = {each.name: each.title for each in shown}
    return template("report.html").render(
        title=headline(run),
        about=_about(run, pictures),
        noised=is_noised(pictures),
        unit=unit_of(pictures),
        picture=picture_uri(pictures["image"].values),
        aspect="{1} / {0}".format(*pictures["image"].shape),
        pixelated=max(pictures["image"].shape[:2]) <= EXACT_SIDE,
        steps=[int(step) for step in pictures["step"].values],
        strip=_strip(pictures, shown),
        methods=[_panel(each) for each in shown],
        map_draws=_draws_of_maps(explanation),
        clipped=clipped_share(),
        chart=_chart(pictures, shown),
        recognition=recognition(explanation),
        words=word_charts(pictures, {each.name: each.result for each in shown}),
        measures=list(_measures(pictures, shown)),
        warnings=warnings(explanation, shown),
        signatures=signatures(run),
        facts=facts({name: value for name, value in run.items() if name not in TOLD_ELSEWHERE}),
        seconds=facts({titles.get(name, name): value for name, value in (run.get("seconds") or {}).items()}),
        versions=facts(run.get("versions") or {}),
        command=command_line(run.get("command")),
        alpha=ALPHA,
        payload=_payload(explanation, shown),
    )


def summary(explanation: Explained) -> str:
    """A few lines of HTML for a notebook: the picture, and each method's maps over the clean prediction."""
    pictures, run = explanation.pictures, explanation.run
    rows = [row for each in shown_methods(explanation) for row in _rows(pictures, each)]
    return template("summary.html").render(
        title=headline(run),
        about=_about(run, pictures),
        unit=unit_of(pictures),
        picture=picture_uri(pictures["image"].values, EXACT_SIDE),
        rows=rows,
    )


def payload(explanation: Explained) -> str:
    """What the page's script reads, as JSON that is safe inside HTML: samples, raw maps, colours, the first step."""
    return _payload(explanation, shown_methods(explanation))


def _payload(explanation: Explained, shown: Sequence[Shown]) -> str:
    pictures = explanation.pictures
    looked_at = likelihoods(explanation)
    steps = [
        {
            **place_numbers(here),
            "sample": _sample_uri(here, pictures.sizes["step"]),
            "likelihood": looked_at.get(int(here["step"])),
        }
        for here in (pictures.sel(step=step) for step in pictures["step"].values)
    ]
    return as_json(
        {
            "start": _start(pictures, shown),
            "unit": unit_of(pictures),
            "noised": is_noised(pictures),
            "steps": steps,
            "methods": {each.name: raw_maps(each) for each in shown},
            "colours": palettes(),
        }
    )


def headline(run: Mapping[str, Any]) -> str:
    """What a run is of, in as many words as its prompt or file name has."""
    names = (run.get(name) for name in ("prompt", "photograph", "model"))
    return str(next(filter(None, names), "A recorded run"))


def _about(run: Mapping[str, Any], pictures: xr.Dataset) -> list[str]:
    """The run in a few words; what it does not say, or left to the pipeline, is left out."""
    words = {
        "model": "{}",
        "classifier": "classifier {}",
        "label": "explained label {}",
        **(NOISED_WORDS if is_noised(pictures) else {}),
        "seed": "seed {}",
        "guidance_scale": "guidance {:g}",
        "schedule": "{} schedule",
        "created": "{}",
    }
    said = [form.format(run[name]) for name, form in words.items() if run.get(name) is not None]
    return [*said[:1], counted(pictures.sizes["step"], unit_of(pictures)), *said[1:]]


def _start(pictures: xr.Dataset, shown: Sequence[Shown]) -> int:
    """Open on a step that has something to show: the middle one of those that the first method explained."""
    steps = explained_steps(shown[0].result) if shown else []
    return steps[len(steps) // 2] if steps else int(pictures["step"].values[-1])


def _draws_of_maps(explanation: Explained) -> int:
    return max((result.sizes.get("draw", 1) for result in explanation.methods().values()), default=1)


# Panels


def _strip(pictures: xr.Dataset, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Thumbnails above the control; the page's large clean prediction is the same data URI, so it is carried once.

    Every step has one, and of a noised photograph every few frames share one.
    """
    steps = [int(step) for step in pictures["step"].values]
    shared = math.ceil(len(steps) / THUMBNAILS) if is_noised(pictures) else 1
    explained = [(each, set(explained_steps(each.result))) for each in shown]
    parts = [(at, steps[at : at + shared]) for at in range(0, len(steps), shared)]
    return [{"at": at, **_thumb(pictures, part, STRIP_WIDTH // len(parts), explained)} for at, part in parts]


def _thumb(
    pictures: xr.Dataset, steps: list[int], width: int, explained: Sequence[tuple[Shown, set[int]]]
) -> dict[str, Any]:
    """One picture for neighbouring steps, and below it the hue of each method that explained one of them."""
    shown, unit = steps[len(steps) // 2], unit_of(pictures).capitalize()
    titles = [each.title for each, known in explained if known & set(steps)]
    where = f"{unit} {steps[0]}" if len(steps) == 1 else f"{unit}s {steps[0]} to {steps[-1]}"
    small = (min(width, LARGEST_SIDE // 2), NOISE_QUALITY) if is_noised(pictures) else ()
    return {
        "span": len(steps),
        "title": f"{where}, explained by {' and '.join(titles)}" if titles else where,
        "alt": f"{'Frame' if is_noised(pictures) else 'Clean prediction at step'} {shown}",
        "picture": picture_uri(clean_pictures(pictures).sel(step=shown).values, *small),
        "marks": [[each.hue for each, known in explained if step in known] for step in steps],
    }


def _sample_uri(here: xr.Dataset, number: int) -> str:
    """The sample of one of so many steps, which at 256 px still shows the noise of a large picture."""
    picture = here["sample"].values
    return _frame_uri(picture, number) if is_noised(here) else picture_uri(picture, LARGEST_SIDE // 2)


def _frame_uri(picture: np.ndarray, number: int) -> str:
    """One of so many noised frames; of more than FULL_FRAMES all get smaller, so that the page does not get larger."""
    side = int(LARGEST_SIDE / 2 * min(1.0, math.sqrt(FULL_FRAMES / number)))
    return picture_uri(picture, side, NOISE_QUALITY if max(picture.shape[:2]) > EXACT_SIDE // 2 else None)


def _panel(shown: Shown) -> dict[str, Any]:
    """What the template says about a method; its maps are in the payload."""
    result, limits = shown.result, shown.limits
    return {
        "name": shown.name,
        "hue": shown.hue,
        "title": shown.title,
        "reading": result.attrs.get("reading", ""),
        "layers": [label for label, _ in layers(result)],
        "foremost": shown.foremost,
        "small": is_layered(result),
        "gradient": gradient(limits.cmap().name),
        "has_error": shown.errors is not None,
        "signed": limits.signed,
        "clipped": shown.clipped,
        "block": shown.block,
        "grid": f"{result.sizes['y']} × {result.sizes['x']}",
        "facts": facts({key: value for key, value in result.attrs.items() if key not in SHOWN_WITH_THE_MAP}),
    }


def _rows(pictures: xr.Dataset, shown: Shown) -> Iterator[dict[str, Any]]:
    """A row of the summary for each map that a step has."""
    entries = layers(shown.result) if is_layered(shown.result) else [("", layers(shown.result)[0][1])]
    for label, layer in entries:
        title = " · ".join(filter(None, [shown.title, label]))
        yield {"title": title, "maps": list(_thumbnails(pictures, layer, shown.limits))}


def _thumbnails(pictures: xr.Dataset, layer: xr.Dataset, limits: Limits, most: int = 8) -> Iterator[tuple[int, str]]:
    """(step, overlay as a data URI) for at most so many steps, spread over all those explained."""
    steps = explained_steps(layer)
    for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(most, len(steps)))}):
        beneath = pictures["image"] if is_noised(pictures) else pictures["pred_original_sample"].sel(step=steps[i])
        heat = overlay(beneath.values, layer["saliency"].sel(step=steps[i]).values, limits)
        yield steps[i], picture_uri(heat, EXACT_SIDE)


# Charts


def _chart(pictures: xr.Dataset, shown: Sequence[Shown]) -> dict[str, Any]:
    """The log-SNR of every step, and the reliability of each method that has one."""
    places = across(pictures["step"].values)
    return {
        "steps": step_ticks(pictures["step"].values),
        "snr": line(pictures["log_snr"], places, *span(pictures["log_snr"].values)),
        "reliability": [
            {"hue": each.hue, "title": each.title, **line(each.result["reliability"], places, 0, 1)}
            for each in shown
            if is_series(each.result, "reliability")
        ],
    }


def _measures(pictures: xr.Dataset, shown: Sequence[Shown]) -> Iterator[dict[str, Any]]:
    """A small chart for each measure that a method has at its steps, with a line for each method."""
    for name, caption in captions_of(each.result for each in shown).items():
        series = [(each, each.result[name]) for each in shown if is_series(each.result, name)]
        if not series:
            continue
        low, high = span(np.concatenate([values.values for _, values in series]))
        lines = [{"hue": each.hue, "title": each.title, **line(values, across(pictures["step"].values), low, high)}
                 for each, values in series]  # fmt: skip
        yield {"title": caption["long_name"], "text": caption["comment"], "lines": lines}
