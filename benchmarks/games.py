"""Deletion and insertion on the bundled model: do the maps rank positions by what the next step depends on?

    python benchmarks/games.py                                     # 50 scenes, half an hour to an hour on two cores
    python benchmarks/games.py --scenes 10 --methods df-rise,lime
    python benchmarks/games.py --masks 500 --lime-samples 1000     # as published, twice that

Means over scenes, of one small object and of two in turn, with bootstrap intervals, at three steps of 30. The curves
are distances of CLIP features to the result of the untouched step: of DELETION a HIGHER area is better, of INSERTION a
LOWER one. That is the opposite of the games on a classifier (RISE), whose curves are a class's probability. The second
table has one sign for both: how much better than a random ranking of the same scene, above 0 is better.

Every scene is a line in --out, and a second call goes on where the first was stopped.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from resumed import over_scenes
from rich.console import Console
from rich.table import Table
from scenes import drawn

import denoscope
from denoscope.attributors.base import list_methods, method
from denoscope.evaluation import BASELINES, GAMES, Baseline, bootstrap, games, random_ranking
from denoscope.vision.encoders import load_encoder
from denoscope.worlds.shapes.scenes import Scene

STEPS = {"early": 6, "middle": 15, "late": 24}
"""Of 30."""
METHODS = ("df-rise", "df-rise-contrast", "df-cam", "lime")
RANKINGS = [name for name in BASELINES if name != "constant"]
"""A constant map ranks nothing."""
SIGN = {name: 1 if game.higher_is_better else -1 for name, game in GAMES.items()}


def maps_of(trace: denoscope.Trace, name: str, options: dict[str, Any], seed: int) -> xr.DataArray | xr.Dataset:
    if name == "random":
        return random_ranking(trace, list(STEPS.values()), seed=seed)
    if name in RANKINGS:
        return Baseline(BASELINES[name])(trace, list(STEPS.values()))
    return method(name, **options)(trace, list(STEPS.values()))


def by_step(auc: xr.DataArray) -> dict[str, dict[str, float]]:
    """Areas (game, step) as plain values, by game and by the steps' names."""
    return {game: dict(zip(STEPS, auc.sel(game=game).values.tolist(), strict=True)) for game in GAMES}


def scores_of_scene(
    seed: int, count: int, options: dict[str, dict[str, Any]], baselines: list[str]
) -> dict[str, Any] | None:
    """Make a scene's picture and play with every map; None where the picture does not show `count` things."""
    found = drawn(Scene.random(seed, count=count, size="small" if count == 1 else None))
    if found is None:
        return None
    trace, encoder = found[0], load_encoder()
    auc, seconds = {}, {}
    for name in [*options, *baselines]:
        began = time.process_time()
        maps = maps_of(trace, name, options.get(name, {}), seed)
        explained = time.process_time()
        auc[name] = by_step(games(trace, maps, encoder).auc)
        seconds[name] = [explained - began, time.process_time() - explained]
    return {"auc": auc, "seconds": seconds}


def summary(scores: list[dict[str, Any]], methods: list[str]) -> dict[str, Any]:
    """Per method, game and step: the mean area, and the mean gain over the random ranking of the same scene."""

    def interval(name: str, game: str, step: str, against: str | None) -> dict[str, float]:
        values = np.array([s["auc"][name][game][step] for s in scores])
        if against:
            values = SIGN[game] * (values - np.array([s["auc"][against][game][step] for s in scores]))
        return vars(bootstrap(values))

    def table(names: list[str], against: str | None) -> dict[str, Any]:
        return {m: {g: {s: interval(m, g, s, against) for s in STEPS} for g in GAMES} for m in names}

    return {"auc": table(methods, None), "gain": table([m for m in methods if m != "random"], "random")}


def show(results: dict[str, Any]) -> None:
    titles = {
        "auc": "Area under the curve. Deletion: HIGHER is better. Insertion: LOWER is better (unlike a classifier's).",
        "gain": "Gain over the random ranking of the same scene: above 0 is better in both games.",
    }
    for measure, title in titles.items():
        signs = {game: ("↑" if SIGN[game] > 0 else "↓") if measure == "auc" else "" for game in GAMES}
        columns = [f"{game} {signs[game]} {step}".replace("  ", " ") for game in GAMES for step in STEPS]
        shown = Table("map", *columns, title=f"{results['scenes']} scenes. {title}")
        for name, row in results[measure].items():
            shown.add_row(name, *(told(v) for game in row.values() for v in game.values()))
        Console(width=160).print(shown)


def told(value: dict[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def options_of(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The methods asked for with their options; what is not there is named and passed over."""
    options = {
        "df-rise": dict(num_masks=asked.published_masks),
        "df-rise-reference": dict(num_masks=asked.published_masks),
        "df-rise-contrast": dict(num_masks=asked.masks),
        "lime": dict(num_samples=asked.lime_samples),
    }
    chosen = asked.methods.split(",")
    for name in set(chosen) - set(list_methods()):
        print(f"There is no method {name}, so it is passed over.")
    return {name: options.get(name, {}) for name in chosen if name in list_methods()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--baselines", default=",".join(RANKINGS), help="random among them: gains are over it")
    parser.add_argument("--masks", type=int, default=256, help="masks per step for DF-RISE's contrast form")
    parser.add_argument("--published-masks", type=int, default=64, help="masks per step for DF-RISE's paper form")
    parser.add_argument("--lime-samples", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/games.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options = options_of(asked)
    baselines = asked.baselines.split(",")
    if "random" not in baselines or set(baselines) - set(RANKINGS):
        parser.error(f"--baselines {asked.baselines}: random and any of {', '.join(RANKINGS)}")
    score = functools.partial(scores_of_scene, options=options, baselines=baselines)
    settings = {"options": options, "baselines": baselines, "steps": STEPS}
    scores = over_scenes(score, asked.scenes, settings, asked.out, asked.workers)
    results = {"scenes": len(scores), **summary(scores, [*options, *baselines])}
    for name in results["auc"]:
        spent = np.mean([s["seconds"][name] for s in scores], axis=0)
        print(f"{name}: {spent[0]:.1f} s to explain a scene's {len(STEPS)} steps, {spent[1]:.1f} s to play")
    show(results)
    table = asked.out.with_suffix(".json")
    table.write_text(json.dumps(results, indent=2))
    print(table)


if __name__ == "__main__":
    main()
