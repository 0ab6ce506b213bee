"""The page of several variants of a run: all at the same noise level, and the differences between their pictures.

Runs of different schedules have no step in common, so the one control walks over noise: at each log-SNR every variant
shows the last step that it had taken by then. Every step of every variant has a level of its own.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import xarray as xr

from ..criteria import ALIKE
from ..errors import InputError
from ..figures.clips import is_clip, still_explanation
from ..figures.noise_axis import Axis
from ..figures.results import Explained, layers
from ..figures.scales import Limits, clipped_limits
from ..figures.theme import ALPHA, HUES, Key, hue_and_dash, readable
from ..figures.words import has_words
from ..recording.schedules import BANDS
from .caveats import AGAIN, Caveat, failures, signatures, unread_prompt, warnings
from .maps import CARD_CELLS, CARD_MAPS, PageResult, averaged, fewer_cells, nearest_maps, number_of_maps
from .page import EXACT_SIDE, as_json, command_line, counted, line, palettes, picture_uri, template

PICTURE_SIDE, PICTURES = 256, 150
"""Pixels of a picture's longer side, for up to so many pictures in all; more pictures are smaller."""
DISTANCES = {
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
    """Return the whole page as text; the page of each variant is expected at `NAME/report.html`.

    `run` is the record of the comparison. Of clips the middle frame is shown. Raises `InputError` if there is no
    explanation.
    """
    if not explanations:
        raise InputError("There is nothing to compare. Give the explanation of at least one variant.")
    about = _about(explanations, run)
    explanations = {name: still_explanation(each) for name, each in explanations.items()}
    axis = Axis.of([each.pictures for each in explanations.values()])
    keys, maps = _keys(explanations, run), _maps(explanations)
    pairs = run.get("distances") or []
    distances = {name: words for name, words in DISTANCES.items() if any(name in pair for pair in pairs)}
    return template("variants.html").render(
        title=str(run.get("prompt") or "A recorded run, several ways"),
        about=about,
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
        measured=distances,
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
    """Return the kind and number of the variants, and the settings that all of them share."""
    forms = {"model": "{}", "seed": "seed {}", "guidance_scale": "guidance {:g}", "schedule": "{} schedule"}
    variants = list(run["variants"].values())
    shared = []
    for name, form in forms.items():
        values = {str(variant.get(name)) for variant in variants}
        if len(values) == 1 and variants[0].get(name):
            shared.append(form.format(variants[0][name]))
    kind = VARIED.get(str(run.get("along")), "variants")
    several = kind if run.get("along") == "lora" else f"{len(explanations)} {kind}"
    if any(is_clip(each.pictures) for each in explanations.values()):
        shared.append("the middle frame of each clip is shown")
    return [several, *shared, *filter(None, [run.get("created")])]


def _keys(explanations: Mapping[str, Explained], run: Mapping[str, Any]) -> dict[str, Key]:
    """Return the look of every variant's lines, named by the variant's title."""
    titles = {name: str(run["variants"][name]["title"]) for name in explanations}
    return {name: Key(title, *hue_and_dash(i), explained=True) for i, (name, title) in enumerate(titles.items())}


def _warnings(run: Mapping[str, Any]) -> Iterator[Caveat]:
    """Yield the caveats of the comparison; each variant's own page has the caveats of its maps."""
    if run.get("interrupted"):
        yield Caveat("This run was stopped before it was finished.", f"{run.get('interruption') or ''} {AGAIN}".strip())
    yield from unread_prompt(run)
    for name, message in (run.get("failures") or {}).items():
        yield Caveat(f"{name} is not here.", str(message))
    pairs = run.get("distances") or []
    if pairs and all(pair.get("ssim", 0) >= ALIKE for pair in pairs):
        yield Caveat(
            "The pictures look the same.",
            f"Any two have a structural similarity of {ALIKE} or more: what was varied made no difference that can be "
            "seen. Read what is below as noise.",
        )
    else:
        yield from failures(run)


def _card(name: str, explanation: Explained, key: Key) -> dict[str, Any]:
    """Return a variant's card for the template; its steps and maps are in the payload."""
    picture = explanation.pictures["image"].values
    caveats = warnings(explanation) if explanation.methods() else []
    return {
        "name": name,
        "link": f"{quote(name, safe='')}/report.html",
        "key": key,
        "picture": picture_uri(picture, PICTURE_SIDE),
        "aspect": "{1} / {0}".format(*picture.shape),
        "steps": counted(explanation.pictures.sizes["step"], "step"),
        "caveats": counted(len(caveats), "thing") if caveats else "",
    }


# The steps along the noise


def _lane(name: str, run: Mapping[str, Any], axis: Axis, key: Key) -> dict[str, Any]:
    """Return the steps of a variant along the axis, and their shares in the bands."""
    variant = run["variants"][name]
    shares = {band: f"{100 * share:.0f}\N{NO-BREAK SPACE}%" for band, share in variant["coverage"].items()}
    marks = [f"{axis.across(level):.2f}" for level in variant["log_snr"]]
    return {"key": key, "marks": marks, "shares": shares, "number": len(marks)}


def _bands(axis: Axis) -> Iterator[dict[str, Any]]:
    """Yield the bands of SNR that lie on the axis, with their left edge and width in per cent."""
    left = 0.0
    for name, edge in BANDS.items():
        right = 100.0 if math.isinf(edge) else axis.across(math.log(edge))
        if right > left:
            yield {"name": name, "left": left, "width": right - left}
        left = right


# Words


def _relevance(explanation: Explained) -> xr.DataArray | None:
    """Return the relevance of each word, 0 to 1 at every step, (step, token); None if no method gives it."""
    relevance = (result["relevance_scaled"] for result in explanation.methods().values() if has_words(result))
    return next(relevance, None)


def _words(explanations: Mapping[str, Explained], axis: Axis, keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """Return a chart for each word, with a line for each variant that has the same words as the first."""
    series = {name: _relevance(each) for name, each in explanations.items()}
    relevance = {name: values for name, values in series.items() if values is not None}
    if not relevance:
        return []
    words = _texts(next(iter(relevance.values())))
    charts = []
    for i, word in enumerate(words):
        lines = [
            _word_line(explanations[name].pictures, values.isel(token=i), axis, keys[name])
            for name, values in relevance.items()
            if _texts(values) == words
        ]
        charts.append({"word": word, "lines": lines})
    return charts


def _texts(relevance: xr.DataArray) -> list[str]:
    """Return the words that have a relevance."""
    return [str(word) for word in relevance["token"].values]


def _word_line(pictures: xr.Dataset, values: xr.DataArray, axis: Axis, key: Key) -> dict[str, Any]:
    """Return the line of a word in one variant."""
    levels = pictures["log_snr"].sel(step=values["step"]).values
    places = {int(step): axis.across(level) for step, level in zip(values["step"].values, levels, strict=True)}
    return {"key": key, **line(values, places, 0, 1)}


def _bars(run: Mapping[str, Any], keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """Return for each word its total over the steps of each variant, and the length of the bar for it."""
    totals = {name: variant["relevance"] for name, variant in run["variants"].items() if variant["relevance"]}
    totals = {name: values for name, values in totals.items() if name in keys}
    if not totals:
        return []
    words = [word for word, _ in next(iter(totals.values()))]
    comparable = {name: values for name, values in totals.items() if [word for word, _ in values] == words}
    longest = max(value for values in comparable.values() for _, value in values) or 1.0
    rows = []
    for i, word in enumerate(words):
        bars = [_bar(keys[name], values[i][1], longest) for name, values in comparable.items()]
        rows.append({"word": word, "bars": bars})
    return rows


def _bar(key: Key, total: float, longest: float) -> dict[str, Any]:
    """Return a bar whose width is in per cent of the longest."""
    return {"key": key, "width": 100 * max(total, 0) / longest, "text": f"{total:.1f}"}


# Differences between the pictures


def _pairs(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every two variants by their titles, with the distances between their pictures in words."""
    titles = {name: variant["title"] for name, variant in run["variants"].items()}
    rows = []
    for pair in run.get("distances") or []:
        distances = {name: readable(pair[name]) for name in DISTANCES if name in pair}
        rows.append({"a": titles[pair["a"]], "b": titles[pair["b"]], **distances})
    return rows


def _ratings(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each label its likelihood in every variant's picture, and the variants where it is the likeliest."""
    ratings = run.get("ratings") or {}
    labels = list(next(iter(ratings.values()), {}))
    best = {name: max(rated, key=rated.__getitem__) for name, rated in ratings.items()}
    rows = []
    for label in labels:
        values = {name: readable(rated[label], 2) for name, rated in ratings.items()}
        rows.append({"label": label, "values": values, "best": [name for name in ratings if best[name] == label]})
    return rows


# The data of the page's script


def _maps(explanations: Mapping[str, Explained]) -> dict[tuple[str, str], dict[str, PageResult]]:
    """Return every map that some variant has, by its method's title and its layer, and in each the variants with it."""
    cells = fewer_cells(CARD_CELLS, CARD_MAPS, _number_of_maps(explanations))
    maps: dict[tuple[str, str], dict[str, PageResult]] = {}
    for name, explanation in explanations.items():
        for method, result in explanation.methods().items():
            whole = averaged(method, result, HUES[0], cells)
            for layer, part in layers(whole.data):
                of_layer = whole._replace(data=part, limits=clipped_limits(part))
                maps.setdefault((whole.title, layer), {})[name] = of_layer
    return maps


def _number_of_maps(explanations: Mapping[str, Explained]) -> int:
    """Return the number of maps of all methods and variants."""
    return sum(number_of_maps(result) for each in explanations.values() for result in each.methods().values())


def _opened(maps: Iterable[tuple[str, str]], run: Mapping[str, Any]) -> int:
    """Return the place of the map that is drawn first: of words, that of the most relevant one."""
    relevance = next(iter(run["variants"].values()))["relevance"]
    word = max(relevance, key=lambda entry: float(entry[1]))[0] if relevance else None
    return next((i for i, (_, layer) in enumerate(maps) if layer == word), 0)


def _payload(
    explanations: Mapping[str, Explained], axis: Axis, maps: Mapping[tuple[str, str], Mapping[str, PageResult]]
) -> str:
    """Return the JSON that the page's script reads."""
    number = sum(explanation.pictures.sizes["step"] for explanation in explanations.values())
    side = max(1, int(PICTURE_SIDE * min(1.0, math.sqrt(PICTURES / number))))
    return as_json(
        {
            "start": len(axis.levels) // 2,
            "unit": "noise level",
            "steps": [_level(axis, i) for i in range(len(axis.levels))],
            "variants": [_variant(name, each, axis, side, maps) for name, each in explanations.items()],
            "colours": palettes(),
        }
    )


def _level(axis: Axis, i: int) -> dict[str, Any]:
    """Return one noise level of the axis: its index, numbers and place."""
    log_snr = float(axis.levels[i])
    timestep = readable(float(axis.timesteps[i]), 4)
    return {"index": i, "timestep": timestep, "log_snr": readable(log_snr), "x": axis.across(log_snr)}


def _variant(
    name: str,
    explanation: Explained,
    axis: Axis,
    side: int,
    maps: Mapping[tuple[str, str], Mapping[str, PageResult]],
) -> dict[str, Any]:
    """Return the step that a variant shows at each level, its clean predictions, and its maps."""
    pictures = explanation.pictures
    timesteps = zip(pictures["step"].values, pictures["timestep"].values, strict=True)
    return {
        "places": axis.places(pictures),
        "steps": [{"index": int(step), "timestep": readable(float(time), 4)} for step, time in timesteps],
        "pictures": [picture_uri(picture, side) for picture in pictures["pred_original_sample"].values],
        "maps": [nearest_maps(results.get(name), _shared_limits(results.values())) for results in maps.values()],
    }


def _shared_limits(results: Iterable[PageResult]) -> Limits:
    """Return one colour scale for the same map of all variants."""
    scales = [result.limits for result in results]
    low, high = min(limits.low for limits in scales), max(limits.high for limits in scales)
    if not any(limits.signed for limits in scales):
        return Limits(low, high)
    reach = max(-low, high)
    return Limits(-reach, reach, signed=True)
