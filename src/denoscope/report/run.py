"""One self-contained HTML page for an explanation: one step control moves every panel.

Python makes the numbers, the words and the pictures; `templates/run.js` draws the maps from the raw values that
the page carries, so that what a reader points at is what the array holds (to four significant digits).

Where a classifier looked on, the page follows the likelihood of its labels too. Its maps have a value for every pixel
and draw of a noised photograph: the page carries their means over draws and blocks, and says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..criteria import RELIABLE
from ..figures.clips import chosen_frame, frames_of, is_clip, still, still_explanation
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
from .clips import frame_control, frames_payload, step_frames
from .likelihood import likelihoods, recognition
from .maps import PageResult, page_results, raw_maps
from .page import (
    EXACT_SIDE,
    LARGEST_SIDE,
    NOISE_QUALITY,
    NOISED_WORDS,
    as_json,
    clipped_share,
    column_middles,
    command_line,
    counted,
    gradient,
    is_series,
    line,
    palettes,
    picture_uri,
    place_numbers,
    span,
    step_ticks,
    table_rows,
    template,
)
from .words import word_charts

THUMBNAILS, STRIP_WIDTH = 25, 1400
"""Frames of a noised photograph in the strip, at most, and pixels of all of them together."""
FULL_FRAMES = 100
"""Up to so many noised frames are carried at full size."""
NOT_IN_THE_TABLE = {
    "command", "methods", "versions", "seconds", "steps", "timesteps", "interrupted", "prompt", "created", "diagnosis",
    "unknown_words", "vocabulary", "cut_off",
}  # fmt: skip
"""Entries of a run's record that stand elsewhere on the page."""
BESIDE_THE_MAP = {"title", "reading"}
"""Attributes of a result that stand beside its map."""


def render_run(explanation: Explained) -> str:
    """Return the whole page as text; it needs no network and opens from a file."""
    pictures, run, results = explanation.pictures, explanation.run, page_results(explanation)
    image, clip = still(pictures)["image"], frame_control(pictures, results, explanation.methods())
    titles = {each.name: each.title for each in results}
    in_the_table = {name: value for name, value in run.items() if name not in NOT_IN_THE_TABLE}
    seconds = {titles.get(name, name): value for name, value in (run.get("seconds") or {}).items()}
    return template("run.html").render(
        title=headline(run),
        about=_about(run, pictures),
        noised=is_noised(pictures),
        unit=unit_of(pictures),
        clip=clip,
        picture=picture_uri(image.values),
        aspect="{1} / {0}".format(*image.shape),
        pixelated=max(image.shape[:2]) <= EXACT_SIDE,
        steps=[int(step) for step in pictures["step"].values],
        strip=_strip(pictures, results),
        methods=[_panel(each) for each in results],
        map_draws=_draws_of_maps(explanation),
        clipped=clipped_share(),
        chart=_chart(pictures, results),
        trusted=round(100 * (1 - RELIABLE)),
        recognition=recognition(explanation),
        words=word_charts(pictures, {each.name: each.data for each in results}),
        measures=list(_measures(pictures, results)),
        warnings=warnings(explanation, results),
        signatures=signatures(run),
        facts=table_rows(in_the_table),
        seconds=table_rows(seconds),
        versions=table_rows(run.get("versions") or {}),
        command=command_line(run.get("command")),
        alpha=ALPHA,
        payload=_payload(explanation, results),
    )


def notebook_summary(explanation: Explained) -> str:
    """Return a few lines of HTML for a notebook: the picture, and each method's maps over the clean prediction.

    Of a clip it is the frame with the largest map mass.
    """
    about = _about(explanation.run, explanation.pictures)
    if is_clip(explanation.pictures):
        clip = chosen_frame(frames_of(explanation.pictures), list(explanation.methods().values()))
        explanation, about = still_explanation(explanation, clip.index), [*about, str(clip)]
    pictures = explanation.pictures
    rows = [row for each in page_results(explanation) for row in _rows(pictures, each)]
    return template("summary.html").render(
        title=headline(explanation.run),
        about=about,
        unit=unit_of(pictures),
        picture=picture_uri(pictures["image"].values, EXACT_SIDE),
        rows=rows,
    )


def payload(explanation: Explained) -> str:
    """Return the JSON that the page's script reads, safe inside HTML: samples, raw maps, colours, the first step."""
    return _payload(explanation, page_results(explanation))


def _payload(explanation: Explained, results: Sequence[PageResult]) -> str:
    """Return the JSON for results that are made already."""
    pictures = explanation.pictures
    likelihood_at = likelihoods(explanation)
    steps = []
    for step in pictures["step"].values:
        at_step = pictures.sel(step=step)
        likelihood = likelihood_at.get(int(step))
        steps.append({**place_numbers(at_step), **_shown(at_step, pictures.sizes["step"]), "likelihood": likelihood})
    start = _start(pictures, results)
    return as_json(
        {
            "start": start,
            "unit": unit_of(pictures),
            "noised": is_noised(pictures),
            "reliable": RELIABLE,
            "steps": steps,
            "methods": {each.name: raw_maps(each) for each in results},
            "colours": palettes(),
            **frames_payload(explanation, start),
        }
    )


def headline(run: Mapping[str, Any]) -> str:
    """Return the subject of a run: its prompt, the file name of its photograph, or its model."""
    names = (run.get(name) for name in ("prompt", "photograph", "model"))
    return str(next(filter(None, names), "A recorded run"))


def _about(run: Mapping[str, Any], pictures: xr.Dataset) -> list[str]:
    """Return the run in a few words; entries that are missing or None are left out."""
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
    texts = [form.format(run[name]) for name, form in words.items() if run.get(name) is not None]
    frames = [counted(frames_of(pictures), "frame")] if is_clip(pictures) else []
    return [*texts[:1], *frames, counted(pictures.sizes["step"], unit_of(pictures)), *texts[1:]]


def _start(pictures: xr.Dataset, results: Sequence[PageResult]) -> int:
    """Return the step to open on: the middle one of those that the first method explained, or the last step."""
    steps = explained_steps(results[0].data) if results else []
    return steps[len(steps) // 2] if steps else int(pictures["step"].values[-1])


def _draws_of_maps(explanation: Explained) -> int:
    """Return the most noise draws that a result has."""
    return max((result.sizes.get("draw", 1) for result in explanation.methods().values()), default=1)


# Panels


def _strip(pictures: xr.Dataset, results: Sequence[PageResult]) -> list[dict[str, Any]]:
    """Return the thumbnails above the control: one for every step, or for every few frames of a noised photograph.

    The page's large clean prediction is the same data URI, so it is carried once; of a clip they are small, as the
    frame control replaces them.
    """
    steps = [int(step) for step in pictures["step"].values]
    shared = math.ceil(len(steps) / THUMBNAILS) if is_noised(pictures) else 1
    explained = [(each, set(explained_steps(each.data))) for each in results]
    parts = [(at, steps[at : at + shared]) for at in range(0, len(steps), shared)]
    small: tuple[int, ...] = (min(STRIP_WIDTH // len(parts), LARGEST_SIDE // 2), NOISE_QUALITY)
    if not is_noised(pictures):
        small = (EXACT_SIDE,) if is_clip(pictures) else ()
    return [{"at": at, **_thumb(still(pictures), part, small, explained)} for at, part in parts]


def _thumb(
    pictures: xr.Dataset,
    steps: list[int],
    small: tuple[int, ...],
    explained: Sequence[tuple[PageResult, set[int]]],
) -> dict[str, Any]:
    """Return one picture for neighbouring steps, and below it the hue of each method that explained one of them.

    `small` are the side and quality of the picture, if they are not the usual ones.
    """
    middle, unit = steps[len(steps) // 2], unit_of(pictures).capitalize()
    titles = [each.title for each, explained_by_it in explained if explained_by_it & set(steps)]
    name = f"{unit} {steps[0]}" if len(steps) == 1 else f"{unit}s {steps[0]} to {steps[-1]}"
    marks = []
    for step in steps:
        marks.append([each.hue for each, explained_by_it in explained if step in explained_by_it])
    return {
        "span": len(steps),
        "title": f"{name}, explained by {' and '.join(titles)}" if titles else name,
        "alt": f"{'Frame' if is_noised(pictures) else 'Clean prediction at step'} {middle}",
        "picture": picture_uri(clean_pictures(pictures).sel(step=middle).values, *small),
        "marks": marks,
    }


def _shown(at_step: xr.Dataset, number: int) -> dict[str, Any]:
    """Return the pictures of one of `number` steps that the script shows: the sample, or all shown frames of a clip."""
    return step_frames(at_step, number) if is_clip(at_step) else {"sample": _sample_uri(at_step, number)}


def _sample_uri(at_step: xr.Dataset, number: int) -> str:
    """Return the sample of one of `number` steps; at 256 pixels the noise of a large picture is still seen."""
    picture = at_step["sample"].values
    return _frame_uri(picture, number) if is_noised(at_step) else picture_uri(picture, LARGEST_SIDE // 2)


def _frame_uri(picture: np.ndarray, number: int) -> str:
    """Return one of `number` noised frames; more than FULL_FRAMES get smaller, so that the page does not get larger."""
    side = int(LARGEST_SIDE / 2 * min(1.0, math.sqrt(FULL_FRAMES / number)))
    return picture_uri(picture, side, NOISE_QUALITY if max(picture.shape[:2]) > EXACT_SIDE // 2 else None)


def _panel(result: PageResult) -> dict[str, Any]:
    """Return a method's panel for the template; its maps are in the payload."""
    data, limits = result.data, result.limits
    attributes = {key: value for key, value in data.attrs.items() if key not in BESIDE_THE_MAP}
    return {
        "name": result.name,
        "hue": result.hue,
        "title": result.title,
        "reading": data.attrs.get("reading", ""),
        "layers": [label for label, _ in layers(data)],
        "foremost": result.foremost,
        "small": is_layered(data),
        "gradient": gradient(limits.cmap().name),
        "has_error": result.errors is not None,
        "signed": limits.signed,
        "clipped": result.clipped,
        "block": result.block,
        "grid": f"{data.sizes['y']} × {data.sizes['x']}",
        "facts": table_rows(attributes),
    }


def _rows(pictures: xr.Dataset, result: PageResult) -> Iterator[dict[str, Any]]:
    """Yield a row of the summary for each word or layer, or one row."""
    for label, layer in layers(result.data):
        title = " · ".join(filter(None, [result.title, label]))
        yield {"title": title, "maps": list(_thumbnails(pictures, layer, result.limits))}


def _thumbnails(pictures: xr.Dataset, layer: xr.Dataset, limits: Limits, most: int = 8) -> Iterator[tuple[int, str]]:
    """Yield (step, overlay as a data URI) for at most `most` steps, spread over all explained steps."""
    steps = explained_steps(layer)
    for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(most, len(steps)))}):
        beneath = pictures["image"] if is_noised(pictures) else pictures["pred_original_sample"].sel(step=steps[i])
        heat = overlay(beneath.values, layer["saliency"].sel(step=steps[i]).values, limits)
        yield steps[i], picture_uri(heat, EXACT_SIDE)


# Charts


def _chart(pictures: xr.Dataset, results: Sequence[PageResult]) -> dict[str, Any]:
    """Return the log-SNR of every step, and the reliability of each method that has one."""
    places = column_middles(pictures["step"].values)
    reliable = [each for each in results if is_series(each.data, "reliability")]
    return {
        "steps": step_ticks(pictures["step"].values),
        "snr": line(pictures["log_snr"], places, *span(pictures["log_snr"].values)),
        "reliability": [_line(each, each.data["reliability"], places, 0, 1) for each in reliable],
    }


def _measures(pictures: xr.Dataset, results: Sequence[PageResult]) -> Iterator[dict[str, Any]]:
    """Yield a small chart for each captioned measure, with a line for each method that has it at its steps."""
    places = column_middles(pictures["step"].values)
    for name, caption in captions_of(each.data for each in results).items():
        series = [(each, each.data[name]) for each in results if is_series(each.data, name)]
        if series:
            low, high = span(np.concatenate([values.values for _, values in series]))
            lines = [_line(each, values, places, low, high) for each, values in series]
            yield {"title": caption["long_name"], "text": caption["comment"], "lines": lines}


def _line(
    result: PageResult, values: xr.DataArray, places: Mapping[int, float], low: float, high: float
) -> dict[str, Any]:
    """Return a method's line in a chart from `low` to `high`, with the method's hue and title."""
    return {"hue": result.hue, "title": result.title, **line(values, places, low, high)}
