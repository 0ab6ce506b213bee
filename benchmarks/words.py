"""Do word maps point at what the words name? On scenes of two objects, against the outline of each object drawn.

    python benchmarks/words.py                        # 60 scenes; about ten minutes on two cores
    python benchmarks/words.py --scenes 3 --masks 32

Of each object: the map of its noun phrase ("small red circle", without the article), of its shape's word and of its
colour's. Pointing: is the map's maximum on the object? AUROC: does a place on the object have a higher value than one
off it? Beside them the map of the other object's phrase, which should do worse, chance and the centre prior. Below,
against both objects together: the mean of both phrases, DF-CAM, DF-RISE and what the step's clean prediction shows.

Per step: mean over scenes and its bootstrap interval. Passed over, and counted: scenes whose objects have one colour
and one shape, and those in which the model did not draw both objects in the colour and shape that it was told.
"""

import argparse
import functools
import json
import multiprocessing
from pathlib import Path

import numpy as np
import xarray as xr
from localisation import FIRST_SEED, STEPS, foreground
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import picture_of

import denoscope
from denoscope import Words
from denoscope.attributors.base import method
from denoscope.evaluation import auroc, bootstrap, centre_prior, on_grid, pointing
from denoscope.recording.prompts import numbered
from denoscope.worlds.shapes.judge import masks_of_things
from denoscope.worlds.shapes.scenes import Caption, Scene, caption

Scores = dict[str, dict[str, dict[str, float]]]
"""By map, by measure, by step."""


def parts_of(worded: Caption, scene: Scene, thing: int) -> dict[str, list[str]]:
    """The labels of the words of a thing's phrase, and of those that name its shape and its colour."""
    labels, own = numbered(worded.words), worded.words_of(thing)
    named = lambda word: [labels[i] for i in own if worded.words[i] == word]  # noqa: E731
    facts = scene.things[thing]
    return {"noun phrase": [labels[i] for i in own], "its shape": named(facts.shape), "its colour": named(facts.colour)}


def measured(saliency: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Whether a map's maximum is on the object, and the AUROC."""
    enlarged = on_grid(saliency, *mask.shape)
    return {"pointing": pointing(enlarged, mask), "auroc": auroc(enlarged, mask)}


def over_steps(maps: list[np.ndarray], mask: np.ndarray) -> dict[str, dict[str, float]]:
    each = [measured(saliency, mask) for saliency in maps]
    return {
        name: {step: found[name] for step, found in zip(STEPS, each, strict=True)} for name in ("pointing", "auroc")
    }


def at_chance(mask: np.ndarray) -> dict[str, dict[str, float]]:
    return {"pointing": dict.fromkeys(STEPS, float(mask.mean())), "auroc": dict.fromkeys(STEPS, 0.5)}


def phrase_maps(maps: xr.DataArray, labels: list[str]) -> list[np.ndarray]:
    """At each step the mean over words, which is a phrase's map where each word is one piece, as here."""
    return list(maps.sel(token=labels).mean("token").values)


def scores_of_thing(maps: xr.DataArray, parts: dict, others: list[str], mask: np.ndarray) -> Scores:
    found = {name: over_steps(phrase_maps(maps, labels), mask) for name, labels in parts.items()}
    found["the other's phrase"] = over_steps(phrase_maps(maps, others), mask)
    found["centre prior"] = over_steps([centre_prior(*mask.shape)] * len(STEPS), mask)
    return {**found, "chance": at_chance(mask)}


def scores_of_both(
    trace: denoscope.Trace, maps: xr.DataArray, labels: list[str], mask: np.ndarray, masks: int
) -> Scores:
    """Against both objects together."""
    steps, found = list(STEPS.values()), {"both phrases": over_steps(phrase_maps(maps, labels), mask)}
    for name, options in {"df-cam": {}, "df-rise-contrast": {"num_masks": masks}}.items():
        found[name] = over_steps(list(method(name, **options)(trace, steps).saliency.values), mask)
    found["clean prediction"] = over_steps([foreground(trace[step]) for step in steps], mask)
    found["centre prior"] = over_steps([centre_prior(*mask.shape)] * len(STEPS), mask)
    return {f"both: {name}": scores for name, scores in {**found, "chance": at_chance(mask)}.items()}


def scores_of_scene(seed: int, masks: int) -> Scores | None:
    """The mean over a scene's two things; None where there is no telling which object is whose."""
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
    return {
        name: {
            measure: {step: float(np.mean([scores[name][measure][step] for scores in each])) for step in STEPS}
            for measure in measures
        }
        for name, measures in each[0].items()
    }


def measure(scenes: int, masks: int, workers: int) -> dict:
    """Scenes until enough were drawn as told."""
    results, passed_over = [], 0
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.imap(functools.partial(scores_of_scene, masks=masks), range(FIRST_SEED, FIRST_SEED + 4 * scenes))
        for scores in track(found, total=4 * scenes, description="scenes of two objects"):
            passed_over += scores is None
            results += [scores] if scores else []
            if len(results) == scenes:
                break
    table = {
        name: {
            measure: {step: vars(bootstrap([r[name][measure][step] for r in results])) for step in STEPS}
            for measure in measures
        }
        for name, measures in results[0].items()
    }
    return {"scenes": len(results), "passed_over": passed_over, "masks": masks, "scores": table}


def show(result: dict) -> None:
    for measure in ("pointing", "auroc"):
        title = f"{measure}: {result['scenes']} scenes of two objects, {result['passed_over']} passed over"
        shown = Table("map", *(f"{name} ({index})" for name, index in STEPS.items()), title=title)
        for name, scores in result["scores"].items():
            row = scores[measure].values()
            shown.add_row(name, *(f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in row))
        Console(width=120).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--masks", type=int, default=256, help="masks per step for DF-RISE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/words.json"))
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    result = measure(asked.scenes, asked.masks, asked.workers)
    asked.out.write_text(json.dumps(result, indent=2))
    show(result)
    print(asked.out)


if __name__ == "__main__":
    main()
