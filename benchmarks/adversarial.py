"""Do maps follow what the denoiser uses, or superficial patterns? Small searched-for changes of x_t at the middle step.

    python benchmarks/adversarial.py                 # 12 scenes
    python benchmarks/adversarial.py --scenes 4 --iterations 10

Two attacks by projected gradient inside a small L∞ ball: one keeps the final picture and moves the map, one keeps the
map and moves the final picture; beside them a random change of the same size. --picture clean takes the step's clean
prediction for the picture, in about half of the time. Of DF-RISE's contrast form with
fixed masks, and of the gradient's magnitude. `map agreement` is the rank correlation with the unchanged map,
`AUROC` how well the changed map still finds the true objects, changes are root mean squares in units of the unchanged
one's spread. `denoscope evaluate --checks attacks` measures the first two attacks'
ranks only. Means over scenes, of one small object and of two in turn, with bootstrap intervals. Every scene is kept
in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scenes import drawn, scene_of
from work import benchmark_parser, in_turn, over_scenes, table_path

from denoscope.attributors.masks import GridMasks
from denoscope.evaluation import Attack, MaximumBall, attacks, auroc, bootstrap, contrast_map, gradient_map, on_grid
from denoscope.report.leaderboard import cell_text
from denoscope.targets import Closeness

STEP = 15
"""Of 30."""
MEASURES = {
    "map_agreement": "map agreement",
    "map_change": "map change",
    "picture_change": "picture change",
    "auroc": "AUROC",
}


def scores_of_scene(seed: int, masks: int, picture: str, attack: dict[str, Any]) -> dict[str, Any] | None:
    """Attack both maps of a scene's picture; None if the picture does not show the scene's things."""
    recorded = drawn(scene_of(seed))
    if recorded is None:
        return None
    trace, mask = recorded
    step = trace[STEP]
    fixed = np.concatenate(list(GridMasks().stream(step.layout.shape, 0, masks, masks)))
    maps = {"DF-RISE contrast": contrast_map(step, Closeness(), fixed), "gradient magnitude": gradient_map(step)}
    search = Attack(MaximumBall(attack["radius"]), attack["iterations"])
    seen = functools.partial(trace.continued, STEP) if picture == "final" else step.predict_original
    return {name: _attacked(step, saliency, seen, search, mask) for name, saliency in maps.items()}


def _attacked(step: Any, saliency: Any, seen: Any, search: Attack, mask: np.ndarray) -> dict[str, dict[str, float]]:
    result = attacks(step, saliency, seen, search)
    unchanged = saliency(step.sample)[0].detach().double().numpy()
    nothing = {"map_agreement": 1.0, "map_change": 0.0, "picture_change": 0.0}
    rows = {"none": {**nothing, "auroc": _auroc(unchanged, mask)}}
    for name in result.attack.values:
        row = result.sel(attack=name)
        rows[str(name)] = {**{m: float(row[m]) for m in nothing}, "auroc": _auroc(row.saliency.values, mask)}
    return rows


def _auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    return auroc(on_grid(saliency, *mask.shape), mask)


def summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    first = scores[0]
    return {
        name: {
            attack: {m: vars(bootstrap([s[name][attack][m] for s in scores])) for m in MEASURES}
            for attack in first[name]
        }
        for name in first
    }


def show(results: dict[str, Any]) -> None:
    title = f"{results['scenes']} scenes, step {STEP} of 30, {results['attack']}"
    table = Table("map", "change of x_t", *MEASURES.values(), title=title)
    for name, rows in results["table"].items():
        for attack, row in rows.items():
            table.add_row(name, attack, *(cell_text(row[measure]) for measure in MEASURES))
    Console(width=150).print(table)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=12, out="out/adversarial")
    parser.add_argument("--radius", type=float, default=0.05, help="in standard deviations of x_t")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--masks", type=int, default=32, help="of DF-RISE's map")
    parser.add_argument("--picture", choices=["final", "clean"], default="final")
    options = parser.parse_args()
    attack = {"radius": options.radius, "iterations": options.iterations}
    score = functools.partial(scores_of_scene, masks=options.masks, picture=options.picture, attack=attack)
    settings = {"step": STEP, "masks": options.masks, "picture": options.picture, **attack}
    scores, _ = over_scenes(score, in_turn(options.scenes), options.scenes, settings, options)
    results = {"scenes": len(scores), "attack": settings, "table": summary(scores)}
    show(results)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
