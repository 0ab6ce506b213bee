"""Do pictures under early and late sampling differ visibly? The same captions and seeds under each schedule.

    python benchmarks/schedules.py                          # 50 scenes of one small object and of two in turn
    python benchmarks/schedules.py --scenes 10 --shift 30

Mean structural similarity of the final pictures, 64 × 64, of every two schedules; from 0.99 on Denoscope's comparisons
say that two pictures look the same. Beside them two yardsticks: the uniform schedule with one step fewer, which is what
any other way of parting the time does to the picture, and another seed, which is another picture. Then, under each
schedule, which facts of the scene the judge finds. Means over scenes with bootstrap intervals; differences are paired.
Every scene is a line in --out, and a second call goes on where the first was stopped.
"""

import argparse
import functools
import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from games import told
from resumed import over_scenes
from rich.console import Console
from rich.table import Table
from scenes import GUIDANCE, STEPS, model
from skimage.metrics import structural_similarity

from denoscope.criteria import ALIKE
from denoscope.evaluation import bootstrap
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import Scene, caption

SCHEDULES = ("uniform", "early", "late")
FEWER, OTHER = "uniform, one step fewer", "uniform, another seed"
OTHER_SEED = 500_000


def scores_of_scene(seed: int, count: int, shift: float) -> dict[str, Any]:
    """Similarity of every two pictures that are compared, and the facts that each picture shows, from 0 to 1."""
    scene = Scene.random(seed, count=count, size="small" if count == 1 else None)
    pictures = {name: picture(scene, schedule=name, **_shift(name, shift)) for name in SCHEDULES}
    yardsticks = {FEWER: picture(scene, num_inference_steps=STEPS - 1), OTHER: picture(scene, seed=seed + OTHER_SEED)}
    pairs = [*combinations(SCHEDULES, 2), *(("uniform", name) for name in yardsticks)]
    every = pictures | yardsticks
    return {
        "ssim": {f"{a} and {b}": similarity(every[a], every[b]) for a, b in pairs},
        "facts": {name: facts(every[name], scene) for name in (*SCHEDULES, FEWER)},
    }


def _shift(schedule: str, shift: float) -> dict[str, float]:
    return {} if schedule == "uniform" else {"shift": shift}


def picture(scene: Scene, **options: Any) -> np.ndarray:
    run = dict(seed=scene.seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
    return np.asarray(model().trace(str(caption(scene)), **{**run, **options}).image)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    return float(structural_similarity(one, other, channel_axis=-1, data_range=1))


def facts(shown: np.ndarray, scene: Scene) -> dict[str, float]:
    """Without the position where one thing alone has none to hold."""
    found = {name: float(np.mean(values)) for name, values in asdict(judge(shown, scene)).items()}
    return {name: value for name, value in found.items() if name != "position" or len(scene.things) > 1}


def summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = {pair: _of_pair([s["ssim"][pair] for s in scores]) for pair in scores[0]["ssim"]}
    found = {}
    for schedule in scores[0]["facts"]:
        for fact in dict.fromkeys(fact for s in scores for fact in s["facts"]["uniform"]):
            known = [s["facts"] for s in scores if fact in s["facts"]["uniform"]]
            own = np.array([of[schedule][fact] for of in known])
            less = own - [of["uniform"][fact] for of in known]
            found.setdefault(schedule, {})[fact] = {"mean": vars(bootstrap(own)), "difference": vars(bootstrap(less))}
    return {"pairs": pairs, "facts": found}


def _of_pair(values: list[float]) -> dict[str, Any]:
    return {"ssim": vars(bootstrap(values)), "alike": vars(bootstrap([float(v >= ALIKE) for v in values]))}


def show(results: dict[str, Any]) -> None:
    title = f"{results['scenes']} scenes, {STEPS} steps, shift {results['shift']:g}"
    shown = Table("pictures", "structural similarity", f"share of {ALIKE:g} and more", title=title)
    for pair, row in results["table"]["pairs"].items():
        shown.add_row(pair, told(row["ssim"]), told(row["alike"]))
    Console(width=150).print(shown)
    names = list(results["table"]["facts"]["uniform"])
    right = Table("schedule", "", *names, title="facts of the scene that the judge finds")
    for schedule, row in results["table"]["facts"].items():
        right.add_row(schedule, "share", *(told(row[fact]["mean"]) for fact in names))
        if schedule != "uniform":
            right.add_row(schedule, "minus uniform", *(told(row[fact]["difference"]) for fact in names))
    Console(width=190).print(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--shift", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/schedules.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    score = functools.partial(scores_of_scene, shift=asked.shift)
    scores = over_scenes(score, asked.scenes, {"shift": asked.shift, "steps": STEPS}, asked.out, asked.workers)
    results = {"scenes": len(scores), "shift": asked.shift, "table": summary(scores)}
    show(results)
    table = asked.out.with_suffix(".json")
    table.write_text(json.dumps(results, indent=2))
    print(table)


if __name__ == "__main__":
    main()
