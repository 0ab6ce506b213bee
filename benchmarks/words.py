"""Do word maps point at what the words name? On scenes of two objects, against the outline of each object drawn.

    python benchmarks/words.py                        # 60 scenes; about ten minutes on two cores
    python benchmarks/words.py --scenes 3 --masks 32

Of each object: the map of its noun phrase ("small red circle", without the article), of its shape's word and of its
colour's. Pointing: is the map's maximum on the object? AUROC: does a place on the object have a higher value than one
off it? Beside them the map of the other object's phrase, which should do worse, chance and the centre prior. Below,
against both objects together: the mean of both phrases, DF-CAM, DF-RISE and what the step's clean prediction shows.

Per step: mean over scenes and its bootstrap interval. Skipped, and counted: scenes whose objects have one colour and
one shape, and those in which the model did not draw both objects in the colour and shape of the prompt. Every scene is
kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from localisation import STEPS
from rich.console import Console
from rich.table import Table
from scenes import picture_of
from work import benchmark_parser, over_scenes, table_path

import denoscope
from denoscope import Words
from denoscope.attributors.base import method
from denoscope.commands.subjects import FIRST_SEED
from denoscope.evaluation import auroc, bootstrap, centre_prior, on_grid, pointing
from denoscope.recording.prompts import numbered
from denoscope.report.leaderboard import cell_text
from denoscope.worlds.shapes.judge import masks_of_things
from denoscope.worlds.shapes.scenes import Caption, Scene, caption

Scores = dict[str, dict[str, dict[str, float]]]
"""By map, by measure, by step."""


def parts_of(worded: Caption, scene: Scene, thing: int) -> dict[str, list[str]]:
    """Return the labels of the words of a thing's phrase, of its shape and of its colour."""
    labels, places, facts = numbered(worded.words), worded.words_of(thing), scene.things[thing]
    return {
        "noun phrase": [labels[i] for i in places],
        "its shape": [labels[i] for i in places if worded.words[i] == facts.shape],
        "its colour": [labels[i] for i in places if worded.words[i] == facts.colour],
    }


@torch.no_grad()
def foreground(step: denoscope.Step) -> np.ndarray:
    """Return how far the colours of a step's clean prediction are from their median, the background's, (64, 64)."""
    picture = step.clean()[0].numpy()
    return np.abs(picture - np.median(picture, axis=(1, 2), keepdims=True)).sum(axis=0)


def measured(saliency: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return 1 if a map's maximum is on the object, else 0; and the AUROC."""
    enlarged = on_grid(saliency, *mask.shape)
    return {"pointing": pointing(enlarged, mask), "auroc": auroc(enlarged, mask)}


def over_steps(maps: list[np.ndarray], mask: np.ndarray) -> dict[str, dict[str, float]]:
    each = [measured(saliency, mask) for saliency in maps]
    scores: dict[str, dict[str, float]] = {}
    for name in ("pointing", "auroc"):
        scores[name] = {step: values[name] for step, values in zip(STEPS, each, strict=True)}
    return scores


def at_chance(mask: np.ndarray) -> dict[str, dict[str, float]]:
    return {"pointing": dict.fromkeys(STEPS, float(mask.mean())), "auroc": dict.fromkeys(STEPS, 0.5)}


def phrase_maps(maps: xr.DataArray, labels: list[str]) -> list[np.ndarray]:
    """Return the mean over words at each step: a phrase's map, as each word here is one piece."""
    return list(maps.sel(token=labels).mean("token").values)


def scores_of_thing(maps: xr.DataArray, parts: dict, others: list[str], mask: np.ndarray) -> Scores:
    scores = {name: over_steps(phrase_maps(maps, labels), mask) for name, labels in parts.items()}
    scores["the other's phrase"] = over_steps(phrase_maps(maps, others), mask)
    scores["centre prior"] = over_steps([centre_prior(*mask.shape)] * len(STEPS), mask)
    return {**scores, "chance": at_chance(mask)}


def scores_of_both(
    trace: denoscope.Trace, maps: xr.DataArray, labels: list[str], mask: np.ndarray, masks: int
) -> Scores:
    """Compare the maps with both objects together."""
    steps, scores = list(STEPS.values()), {"both phrases": over_steps(phrase_maps(maps, labels), mask)}
    for name, options in {"df-cam": {}, "df-rise-contrast": {"num_masks": masks}}.items():
        scores[name] = over_steps(list(method(name, **options)(trace, steps).saliency.values), mask)
    scores["clean prediction"] = over_steps([foreground(trace[step]) for step in steps], mask)
    scores["centre prior"] = over_steps([centre_prior(*mask.shape)] * len(STEPS), mask)
    scores["chance"] = at_chance(mask)
    return {f"both: {name}": values for name, values in scores.items()}


def scores_of_scene(seed: int, masks: int) -> Scores | None:
    """Return the mean over a scene's two things; None if the two objects cannot be told apart."""
    scene = Scene.random(seed, count=2)
    first, second = scene.things
    if (first.colour, first.shape) == (second.colour, second.shape):
        return None
    trace = picture_of(scene)
    things = masks_of_things(trace.image, scene)
    if things is None:
        return None
    worded, maps = caption(scene), Words()(trace, list(STEPS.values())).saliency
    parts = [parts_of(worded, scene, thing) for thing in (0, 1)]
    phrases = [part["noun phrase"] for part in parts]
    each = [scores_of_thing(maps, parts[i], phrases[1 - i], things[i]) for i in (0, 1)]
    both = [label for phrase in phrases for label in phrase]
    return {**mean_of(each), **scores_of_both(trace, maps, both, things.any(axis=0), masks)}


def mean_of(each: list[Scores]) -> Scores:
    """Return the mean of several scores."""
    return over_all(each, lambda values: float(np.mean(values)))


def over_all(each: list[Scores], summary: Callable[[list[float]], Any]) -> dict[str, Any]:
    """Return a summary of the values of several scores, by map, measure and step."""
    table: dict[str, Any] = {}
    for name, measures in each[0].items():
        table[name] = {}
        for measure in measures:
            table[name][measure] = {step: summary([scores[name][measure][step] for scores in each]) for step in STEPS}
    return table


def show(result: dict[str, Any]) -> None:
    """Print a table for each measure."""
    for measure in ("pointing", "auroc"):
        title = f"{measure}: {result['scenes']} scenes of two objects, {result['skipped']} skipped"
        table = Table("map", *(f"{name} ({index})" for name, index in STEPS.items()), title=title)
        for name, scores in result["scores"].items():
            table.add_row(name, *(cell_text(cell) for cell in scores[measure].values()))
        Console(width=120).print(table)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=60, out="out/words")
    parser.add_argument("--masks", type=int, default=256, help="masks per step for DF-RISE")
    options = parser.parse_args()
    score = functools.partial(scores_of_scene, masks=options.masks)
    seeds = range(FIRST_SEED, FIRST_SEED + 4 * options.scenes)
    scores, skipped = over_scenes(score, seeds, options.scenes, {"masks": options.masks, "steps": STEPS}, options)
    table = over_all(scores, lambda values: vars(bootstrap(values)))
    result = {"scenes": len(scores), "skipped": skipped, "masks": options.masks, "scores": table}
    show(result)
    table_path(options).write_text(json.dumps(result, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
