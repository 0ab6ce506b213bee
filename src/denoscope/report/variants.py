"""One page for the variants of a run: all at the same noise level, and what sets their pictures apart.

Runs of different schedules have no step in common, so the one control walks over noise: at each log-SNR every variant
shows the last step that it had taken by then. Every step of every variant has a level of its own."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import xarray as xr

from ..criteria import ALIKE
from ..errors import InputError
from ..figures.noise_axis import Axis
from ..figures.results import Explained, explained_steps, layers
from ..figures.scales import Limits, clipped_limits
from ..figures.theme import ALPHA, HUES, Key, readable
from ..figures.words import has_words
from ..recording.schedules import BANDS
from .caveats import AGAIN, Warn, failures, signatures, warnings
from .likelihood import DASHES
from .maps import Shown, packed, shown_attribution
from .page import EXACT_SIDE, as_json, command_line, counted, line, palettes, picture_uri, template

PICTURE_SIDE, PICTURES = 256, 150
"""Pixels of a picture's longer side, for up to so many pictures in all; of more each gets smaller."""
MAP_CELLS, MAPS = 32, 400
"""Cells on a side of a map, for up to so many maps in all; more maps have fewer cells."""
MEASURED = {
    "mse": ("Squared difference", "of values from 0 to 1, the mean: 0 is the same"),
    "ssim": ("Structural similarity", "1 is the same"),
    "features": ("Feature distance", "what an image encoder tells apart: 1 minus the cosine, 0 is the same"),
}
VARIED = {
    "schedule": "schedules",
    "shift": "shifts",
    "seed": "seeds",
    "guidance": "guidance scales",
    "scheduler": "schedulers",
    "model": "models",
    "lora": "with and without a LoRA",
}


def render_variants(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> str:
    """The whole page as text; the page of each variant is expected at `NAME/report.html`.

    `run` is what `variants.record` says. Raises `InputError` where there is nothing to compare.
    """
    if not explanations:
        raise InputError("There is nothing to compare. Give the explanation of at least one variant.")
    axis, keys = Axis.of([explanation.pictures for explanation in explanations.values()]), _keys(explanations, run)
    maps = _maps(explanations)
    return template("juxtaposition.html").render(
        title=str(run.get("prompt") or "A recorded run, several ways"),
        about=_about(explanations, run),
        unit="noise level",
        steps=axis.levels,
        pixelated=all(max(each.pictures["image"].shape[:2]) <= EXACT_SIDE for each in explanations.values()),
        cards=[_card(name, each, keys[name]) for name, each in explanations.items()],
        maps=[{"title": title, "layer": layer} for title, layer in maps],
        opened=_opened(maps, run),
        lanes=[_lane(name, run, axis, keys[name]) for name in explanations],
        bands=list(_bands(axis)),
        ticks=axis.ticks(),
        words=_words(explanations, axis, keys),
        bars=_bars(run, keys),
        pairs=_pairs(run),
        measured={name: said for name, said in MEASURED.items() if any(name in pair for pair in run["distances"])},
        facts=run.get("facts", []),
        ratings=_ratings(run),
        signatures=signatures(run),
        keys=keys,
        warnings=list(_warnings(run)),
        command=command_line(run.get("command")),
        alpha=ALPHA,
        payload=_payload(explanations, axis, maps),
    )


def _about(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> list[str]:
    """What is compared, and what all variants share."""
    varied = VARIED.get(str(run.get("along")), "variants")
    forms = {"model": "{}", "seed": "seed {}", "guidance_scale": "guidance {:g}", "schedule": "{} schedule"}
    told = list(run["variants"].values())
    said = {name: {str(each.get(name)) for each in told} for name in forms}
    shared = [form.format(told[0][name]) for name, form in forms.items() if len(said[name]) == 1 and told[0].get(name)]
    number = len(explanations)
    several = varied if run.get("along") == "lora" else f"{number} {varied}"
    return [several, *shared, *filter(None, [run.get("created")])]


def _keys(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> dict[str, Key]:
    """A line's look for every variant."""
    titles = {name: str(run["variants"][name]["title"]) for name in explanations}
    dashes = ["none", *DASHES]
    return {
        name: Key(title, HUES[i % len(HUES)], dashes[i % len(dashes)], True)
        for i, (name, title) in enumerate(titles.items())
    }


def _warnings(run: Mapping[str, Any]) -> Iterator[Warn]:
    if run.get("interrupted"):
        yield Warn("This run was stopped before it was finished.", f"{run.get('interruption') or ''} {AGAIN}".strip())
    for name, message in (run.get("failures") or {}).items():
        yield Warn(f"{name} is not here.", str(message))
    pairs = run.get("distances") or []
    if pairs and all(pair.get("ssim", 0) >= ALIKE for pair in pairs):
        text = (
            f"Any two have a structural similarity of {ALIKE} or more: what was varied made no difference that can be "
        )
        yield Warn("The pictures look the same.", f"{text}seen. Read what is below as noise.")
    else:
        yield from failures(run)


def _card(name: str, explanation: Explained, key: Key) -> dict[str, Any]:
    """What the template says about a variant; its steps and maps are in the payload."""
    picture, doubts = explanation.pictures["image"].values, warnings(explanation) if explanation.methods() else []
    return {
        "name": name,
        "link": f"{quote(name, safe='')}/report.html",
        "key": key,
        "picture": picture_uri(picture, PICTURE_SIDE),
        "aspect": "{1} / {0}".format(*picture.shape),
        "steps": counted(explanation.pictures.sizes["step"], "step"),
        "doubts": counted(len(doubts), "thing") if doubts else "",
    }


# Where the steps are


def _lane(name: str, run: Mapping[str, Any], axis: Axis, key: Key) -> dict[str, Any]:
    """The steps of a variant along the axis, and their shares in the bands."""
    told = run["variants"][name]
    shares = {band: f"{100 * share:.0f}\N{NO-BREAK SPACE}%" for band, share in told["coverage"].items()}
    marks = [f"{axis.across(level):.2f}" for level in told["log_snr"]]
    return {"key": key, "marks": marks, "shares": shares, "number": len(marks)}


def _bands(axis: Axis) -> Iterator[dict[str, Any]]:
    """The bands of SNR that are on the axis, from where to where in per cent."""
    left = 0.0
    for name, edge in BANDS.items():
        right = 100.0 if math.isinf(edge) else axis.across(math.log(edge))
        if right > left:
            yield {"name": name, "left": left, "width": right - left}
        left = right


# Words


def _relevance(explanation: Explained) -> xr.DataArray | None:
    """How much each word counts at each step, scaled to 0 to 1 at every step, (step, token), where that is known."""
    known = (result["relevance_scaled"] for result in explanation.methods().values() if has_words(result))
    return next(known, None)


def _words(explanations: Mapping[str, Explained], axis: Axis, keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """A chart for each word with a line for each variant that has the same words as the first."""
    series = {name: found for name, each in explanations.items() if (found := _relevance(each)) is not None}
    if not series:
        return []
    words = [str(word) for word in next(iter(series.values()))["token"].values]
    series = {name: found for name, found in series.items() if list(map(str, found["token"].values)) == words}
    return [
        {"word": word, "lines": [_word_line(explanations[name].pictures, found.isel(token=i), axis, keys[name])
                                 for name, found in series.items()]}
        for i, word in enumerate(words)
    ]  # fmt: skip


def _word_line(pictures: xr.Dataset, values: xr.DataArray, axis: Axis, key: Key) -> dict[str, Any]:
    levels = pictures["log_snr"].sel(step=values["step"]).values
    places = {int(step): axis.across(level) for step, level in zip(values["step"].values, levels, strict=True)}
    return {"key": key, **line(values, places, 0, 1)}


def _bars(run: Mapping[str, Any], keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """For each word its total over the steps of each variant, and how long the bar for that is."""
    totals = {name: told["relevance"] for name, told in run["variants"].items() if told["relevance"] and name in keys}
    if not totals:
        return []
    words = [word for word, _ in next(iter(totals.values()))]
    same = {name: values for name, values in totals.items() if [word for word, _ in values] == words}
    longest = max(value for values in same.values() for _, value in values) or 1.0
    return [
        {"word": word, "bars": [{"key": keys[name], "width": 100 * max(values[i][1], 0) / longest,
                                 "text": f"{values[i][1]:.1f}"} for name, values in same.items()]}
        for i, word in enumerate(words)
    ]  # fmt: skip


# How the pictures differ


def _pairs(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    titles = {name: told["title"] for name, told in run["variants"].items()}
    return [
        {"a": titles[pair["a"]], "b": titles[pair["b"]], **{n: readable(pair[n]) for n in MEASURED if n in pair}}
        for pair in run.get("distances") or []
    ]


def _ratings(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each label its likelihood in every variant's picture, and the variants in which it is the likeliest."""
    ratings = run.get("ratings") or {}
    labels = list(next(iter(ratings.values()), {}))
    best = {name: max(rated, key=rated.__getitem__) for name, rated in ratings.items()}
    return [
        {"label": label, "values": {name: readable(rated[label], 2) for name, rated in ratings.items()},
         "best": [name for name in ratings if best[name] == label]}
        for label in labels
    ]  # fmt: skip


# What the page's script reads


def _maps(explanations: Mapping[str, Explained]) -> dict[tuple[str, str], dict[str, Shown]]:
    """Every map that some variant has, by its method's title and its layer, and in each the variants that have it."""
    number = sum(_number(result) for each in explanations.values() for result in each.methods().values())
    cells = max(1, int(MAP_CELLS * min(1.0, math.sqrt(MAPS / max(1, number)))))
    found: dict[tuple[str, str], dict[str, Shown]] = {}
    for name, explanation in explanations.items():
        for method, result in explanation.methods().items():
            shown = shown_attribution(method, result, HUES[0], cells)
            for layer, part in layers(shown.result):
                own = shown._replace(result=part, limits=clipped_limits(part))
                found.setdefault((shown.title, layer), {})[name] = own
    return found


def _opened(maps: Iterable[tuple[str, str]], run: Mapping[str, Any]) -> int:
    """The place of the map that is shown first: of words that of the most relevant one."""
    told = next(iter(run["variants"].values()))["relevance"]
    most = max(told, key=lambda entry: entry[1])[0] if told else None
    return next((i for i, (_, layer) in enumerate(maps) if layer == most), 0)


def _number(result: xr.Dataset) -> int:
    """How many maps a method has."""
    return int(np.prod([size for dim, size in result["saliency"].sizes.items() if dim not in ("y", "x")]))


def _payload(
    explanations: Mapping[str, Explained], axis: Axis, maps: Mapping[tuple[str, str], Mapping[str, Shown]]
) -> str:
    number = sum(explanation.pictures.sizes["step"] for explanation in explanations.values())
    side = max(1, int(PICTURE_SIDE * min(1.0, math.sqrt(PICTURES / number))))
    limits = [_shared([shown.limits for shown in each.values()]) for each in maps.values()]
    return as_json(
        {
            "start": len(axis.levels) // 2,
            "unit": "noise level",
            "steps": [
                {"index": i, "timestep": readable(float(t), 4), "log_snr": readable(float(x)), "x": axis.across(x)}
                for i, (t, x) in enumerate(zip(axis.timesteps, axis.levels, strict=True))
            ],
            "variants": [
                _variant(explanation, axis, side, [_carried(each.get(name), shared)
                                                   for each, shared in zip(maps.values(), limits, strict=True)])
                for name, explanation in explanations.items()
            ],
            "colours": palettes(),
        }
    )  # fmt: skip


def _shared(limits: Sequence[Limits]) -> Limits:
    """One colour scale for the same map of all variants."""
    low, high = min(each.low for each in limits), max(each.high for each in limits)
    if not any(each.signed for each in limits):
        return Limits(low, high)
    reach = max(-low, high)
    return Limits(-reach, reach, signed=True)


def _variant(explanation: Explained, axis: Axis, side: int, maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Which step a variant shows at each level, its clean predictions, and its maps."""
    pictures = explanation.pictures
    return {
        "places": axis.places(pictures),
        "steps": [
            {"index": int(step), "timestep": readable(float(time), 4)}
            for step, time in zip(pictures["step"].values, pictures["timestep"].values, strict=True)
        ],
        "pictures": [picture_uri(picture, side) for picture in pictures["pred_original_sample"].values],
        "maps": maps,
    }


def _carried(shown: Shown | None, limits: Limits) -> dict[str, Any]:
    """A map at each explained step, on the colour scale that all variants share."""
    if shown is None:
        return {"title": "", "maps": {}, "limits": [0, 0], "shape": [0, 0], "colours": ""}
    steps = explained_steps(shown.result)
    maps = {step: shown.result["saliency"].sel(step=step).transpose("y", "x").values for step in steps}
    return {
        "title": shown.title,
        "maps": {step: packed(values) for step, values in maps.items()},
        "limits": [limits.low, limits.high],
        "shape": [shown.result.sizes["y"], shown.result.sizes["x"]],
        "colours": limits.cmap().name,
    }
