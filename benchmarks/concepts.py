"""Do concept maps find what is in a picture, and say what is not? On scenes of two objects of the bundled model.

    python benchmarks/concepts.py                 # 60 scenes; about twenty minutes on two cores
    python benchmarks/concepts.py --scenes 3

Of each object: its noun phrase as a word map, of the prompt's own tokens; as a concept, a text of its own; and the
concept's agreement with the prompt. A control: the phrase of an object that is not there, of a colour and a shape that
neither has. Pointing: is the map's maximum on the object? AUROC: does a place on the object have a higher value than
one off it? Mass: the mean of the map on the object. Told absent: the share of concepts that the result calls absent,
where whole phrases are asked for, where only colour and shape are ("short"), and where both are in one call ("mixed").

Per step: mean over scenes and its bootstrap interval, chance and centre prior beside. Skipped, and counted: scenes
whose objects have one colour and one shape, and those in which the model did not draw both objects as the prompt has
them. Every scene is kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
from typing import Any

import numpy as np
import xarray as xr
from localisation import STEPS
from rich.console import Console
from rich.table import Table
from scenes import picture_of
from words import parts_of, phrase_maps
from work import benchmark_parser, over_scenes, table_path

from denoscope import Concepts, Words
from denoscope.attributors.concepts import ABSENT, FAINT, absent
from denoscope.commands.subjects import FIRST_SEED
from denoscope.evaluation import auroc, bootstrap, centre_prior, on_grid, pointing
from denoscope.report.leaderboard import cell_text
from denoscope.worlds.shapes.judge import masks_of_things
from denoscope.worlds.shapes.scenes import COLOURS, SHAPES, Scene, caption

MEASURES = (
    "pointing",
    "auroc",
    "mass",
    "less mass than the object's own",
    "presence",
    "told absent",
    "told absent, mixed",
)
Scores = dict[str, dict[str, float]]
"""By map and measure, then by step."""


def measured(saliency: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return pointing, AUROC and mass of a map against an object's mask."""
    enlarged = on_grid(saliency, *mask.shape)
    on_object = float(enlarged[mask.astype(bool)].mean())
    return {"pointing": pointing(enlarged, mask), "auroc": auroc(enlarged, mask), "mass": on_object}


def control_of(scene: Scene, seed: int) -> str:
    """Return the phrase of an object that is not there: of another colour and another shape than both."""
    colours = [colour for colour in COLOURS if colour not in {thing.colour for thing in scene.things}]
    shapes = [shape for shape in SHAPES if shape not in {thing.shape for thing in scene.things}]
    return f"small plain {colours[seed % len(colours)]} {shapes[seed % len(shapes)]}"


def scores_of_scene(seed: int) -> list[dict[str, Any]] | None:
    """Return the scores of both objects at every step; None if the two cannot be told apart or were not drawn."""
    scene = Scene.random(seed, count=2)
    first, second = scene.things
    if (first.colour, first.shape) == (second.colour, second.shape):
        return None
    trace = picture_of(scene)
    things = masks_of_things(trace.image, scene)
    if things is None:
        return None
    worded, control, steps = caption(scene), control_of(scene, seed), list(STEPS.values())
    labels = [parts_of(worded, scene, thing)["noun phrase"] for thing in (0, 1)]
    phrases = [" ".join(worded.words[i] for i in worded.words_of(thing)) for thing in (0, 1)]
    sets = {"": [*phrases, control], "short ": [f"{thing.colour} {thing.shape}" for thing in (first, second)]}
    sets["short "].append(" ".join(control.split()[-2:]))
    asked = tuple(dict.fromkeys((*sets[""], *sets["short "])))
    words, concepts = Words()(trace, steps).saliency, Concepts(asked)(trace, steps)
    scores = []
    for place, (step, index) in enumerate(STEPS.items()):
        told = _told(concepts.presence.sel(step=index), sets)
        for thing in (0, 1):
            maps = _maps(concepts, phrases[thing], phrases[1 - thing], control, index)
            maps["word of the prompt"] = phrase_maps(words, labels[thing])[place]
            maps["centre prior"] = centre_prior(*things[thing].shape)
            values = {name: measured(saliency, things[thing]) for name, saliency in maps.items()}
            less = values["control, agreement"]["mass"] < values["agreement"]["mass"]
            values["control, agreement"]["less mass than the object's own"] = float(less)
            for name, number in (("", thing), ("control, ", 2)):
                for length in sets:
                    values.setdefault(f"{name}{length}concept", {}).update(told[length][number])
            values["chance"] = {"pointing": float(things[thing].mean()), "auroc": 0.5}
            scores.append({"step": step, "thing": thing, "values": values})
    return scores


def _told(presence: xr.DataArray, sets: dict[str, list[str]]) -> dict[str, list[dict[str, float]]]:
    """Return the presence of each text, and whether it is told absent among its like and among all."""
    together = dict(zip(presence.token.values.tolist(), absent(presence.values), strict=True))
    result = {}
    for name, texts in sets.items():
        among = presence.sel(token=texts).values
        result[name] = [
            {"presence": float(value), "told absent": float(alone), "told absent, mixed": float(together[text])}
            for text, value, alone in zip(texts, among, absent(among), strict=True)
        ]
    return result


def _maps(concepts: xr.Dataset, phrase: str, other: str, control: str, index: int) -> dict[str, np.ndarray]:
    at = concepts.sel(step=index)
    texts = {"": phrase, "the other's, ": other, "control, ": control}
    maps = {f"{name}concept": at.saliency.sel(token=text).values for name, text in texts.items()}
    return maps | {f"{name}agreement": at.agreement.sel(token=text).values for name, text in texts.items()}


def tabled(scenes: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return mean and interval over scenes, by map, measure and step; the two things of a scene are one value."""
    table: dict[str, Any] = {}
    names = list(scenes[0][0]["values"])
    for name in names:
        for measure in MEASURES:
            for step in STEPS:
                each = [_mean_of(scene, step, name, measure) for scene in scenes]
                known = [value for value in each if value is not None]
                if known:
                    table.setdefault(name, {}).setdefault(measure, {})[step] = vars(bootstrap(known))
    return table


def _mean_of(scene: list[dict[str, Any]], step: str, name: str, measure: str) -> float | None:
    values = [one["values"][name].get(measure) for one in scene if one["step"] == step]
    return None if None in values else float(np.mean(values))


def show(result: dict[str, Any]) -> None:
    """Print a table for each measure."""
    for measure in MEASURES:
        title = f"{measure}: {result['scenes']} scenes of two objects, {result['skipped']} skipped"
        table = Table("map", *(f"{name} ({index})" for name, index in STEPS.items()), title=title)
        for name, scores in result["scores"].items():
            if measure in scores:
                table.add_row(name, *(cell_text(cell) for cell in scores[measure].values()))
        Console(width=120).print(table)


def main() -> None:
    options = benchmark_parser(__doc__, scenes=60, out="out/concepts").parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + 4 * options.scenes)
    score = functools.partial(scores_of_scene)
    scores, skipped = over_scenes(
        score, seeds, options.scenes, {"steps": STEPS, "absent": ABSENT, "faint": FAINT}, options
    )
    result = {"scenes": len(scores), "skipped": skipped, "absent": ABSENT, "faint": FAINT, "scores": tabled(scores)}
    show(result)
    table_path(options).write_text(json.dumps(result, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
