"""Do pictures under early and late sampling differ visibly? The same captions and seeds under each schedule.

    python benchmarks/schedules.py                          # 50 scenes of one small object and of two in turn
    python benchmarks/schedules.py --scenes 10 --shift 30

Mean structural similarity of the final pictures, 64 × 64, of every two schedules; from 0.99 on Denoscope's comparisons
say that two pictures look the same. Beside them two yardsticks: the uniform schedule with one step fewer, which is what
any other way of parting the time does to the picture, and another seed, which is another picture. Then, under each
schedule, which facts of the scene the judge finds. Means over scenes with bootstrap intervals; differences are paired.
Every scene is kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scenes import GUIDANCE, STEPS, model, scene_of
from skimage.metrics import structural_similarity
from work import benchmark_parser, in_turn, over_scenes, table_path

from denoscope.criteria import ALIKE
from denoscope.evaluation import bootstrap
from denoscope.report.leaderboard import cell_text
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import Scene, caption

SCHEDULES = ("uniform", "early", "late")
FEWER, OTHER = "uniform, one step fewer", "uniform, another seed"
OTHER_SEED = 500_000


def scores_of_scene(seed: int, shift: float) -> dict[str, Any]:
    """Return the similarity of every two pictures that are compared, and the facts that each shows, from 0 to 1."""
    scene = scene_of(seed)
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


def facts(image: np.ndarray, scene: Scene) -> dict[str, float]:
    """Return the facts of the scene that the picture shows; the position only of two things."""
    shares = {name: float(np.mean(values)) for name, values in asdict(judge(image, scene)).items()}
    if len(scene.things) < 2:
        del shares["position"]
    return shares


def summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = {pair: _of_pair([s["ssim"][pair] for s in scores]) for pair in scores[0]["ssim"]}
    names = list(dict.fromkeys(fact for s in scores for fact in s["facts"]["uniform"]))
    table: dict[str, Any] = {schedule: {} for schedule in scores[0]["facts"]}
    for schedule, row in table.items():
        for fact in names:
            scenes = [s["facts"] for s in scores if fact in s["facts"]["uniform"]]
            values = np.array([scene[schedule][fact] for scene in scenes])
            difference = values - [scene["uniform"][fact] for scene in scenes]
            row[fact] = {"mean": vars(bootstrap(values)), "difference": vars(bootstrap(difference))}
    return {"pairs": pairs, "facts": table}


def _of_pair(values: list[float]) -> dict[str, Any]:
    return {"ssim": vars(bootstrap(values)), "alike": vars(bootstrap([float(v >= ALIKE) for v in values]))}


def show(results: dict[str, Any]) -> None:
    title = f"{results['scenes']} scenes, {STEPS} steps, shift {results['shift']:g}"
    table = Table("pictures", "structural similarity", f"share of {ALIKE:g} and more", title=title)
    for pair, row in results["table"]["pairs"].items():
        table.add_row(pair, cell_text(row["ssim"]), cell_text(row["alike"]))
    Console(width=150).print(table)
    names = list(results["table"]["facts"]["uniform"])
    right = Table("schedule", "", *names, title="facts of the scene that the judge finds")
    for schedule, row in results["table"]["facts"].items():
        right.add_row(schedule, "share", *(cell_text(row[fact]["mean"]) for fact in names))
        if schedule != "uniform":
            right.add_row(schedule, "minus uniform", *(cell_text(row[fact]["difference"]) for fact in names))
    Console(width=190).print(right)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=50, out="out/schedules")
    parser.add_argument("--shift", type=float, default=60.0)
    options = parser.parse_args()
    score = functools.partial(scores_of_scene, shift=options.shift)
    settings = {"shift": options.shift, "steps": STEPS}
    scores, _ = over_scenes(score, in_turn(options.scenes), options.scenes, settings, options)
    results = {"scenes": len(scores), "shift": options.shift, "table": summary(scores)}
    show(results)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
