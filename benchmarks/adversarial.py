"""Do maps follow what the denoiser uses, or superficial patterns? Small searched-for changes of x_t at the middle step.

    python benchmarks/adversarial.py                 # 12 scenes
    python benchmarks/adversarial.py --scenes 4 --iterations 10

Two attacks by projected gradient inside a small L∞ ball: one keeps the final picture and moves the map, one keeps the
map and moves the final picture; beside them a random change of the same size. --picture clean takes the step's clean
prediction for the picture, in about half of the time. Of DF-RISE's contrast form with
fixed masks, and of the gradient's magnitude. `map agreement` is the rank correlation with the unchanged map,
`AUROC` how well the changed map still finds the true objects, changes are root mean squares in units of the unchanged
one's spread. Means over scenes, of one small object and of two in turn, with bootstrap intervals. Every scene is a line
in --out, and a second call goes on where the first was stopped.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from games import told
from resumed import over_scenes
from rich.console import Console
from rich.table import Table
from scenes import drawn

from denoscope.attributors.masks import GridMasks
from denoscope.evaluation import Attack, MaximumBall, attacks, bootstrap, contrast_map, gradient_map, localisation
from denoscope.targets import Closeness
from denoscope.worlds.shapes.scenes import Scene

STEP = 15
"""Of 30."""
MEASURES = {
    "map_agreement": "map agreement",
    "map_change": "map change",
    "picture_change": "picture change",
    "auroc": "AUROC",
}


def scores_of_scene(seed: int, count: int, masks: int, picture: str, attack: dict[str, Any]) -> dict[str, Any] | None:
    """Attack both maps of a scene's picture; None where the picture does not show `count` things."""
    found = drawn(Scene.random(seed, count=count, size="small" if count == 1 else None))
    if found is None:
        return None
    trace, mask = found
    step = trace[STEP]
    kept = np.concatenate(list(GridMasks().stream(*step.sample.shape[-2:], 0, masks, masks)))
    maps = {"DF-RISE contrast": contrast_map(step, Closeness(), kept), "gradient magnitude": gradient_map(step)}
    search = Attack(MaximumBall(attack["radius"]), attack["iterations"])
    seen = functools.partial(trace.continued, STEP) if picture == "final" else step.predict_original
    return {name: _attacked(step, saliency, seen, search, mask) for name, saliency in maps.items()}


def _attacked(step: Any, saliency: Any, seen: Any, search: Attack, mask: np.ndarray) -> dict[str, dict[str, float]]:
    found = attacks(step, saliency, seen, search)
    unchanged = saliency(step.sample)[0].detach().double().numpy()
    nothing = {"map_agreement": 1.0, "map_change": 0.0, "picture_change": 0.0}
    rows = {"none": {**nothing, "auroc": _auroc(unchanged, mask)}}
    for name in found.attack.values:
        row = found.sel(attack=name)
        rows[str(name)] = {**{m: float(row[m]) for m in nothing}, "auroc": _auroc(row.saliency.values, mask)}
    return rows


def _auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    maps = xr.DataArray(saliency[None], dims=("step", "y", "x"), coords={"step": [STEP]})
    return localisation(maps, mask)["auroc"].item()


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
    shown = Table("map", "change of x_t", *MEASURES.values(), title=title)
    for name, rows in results["table"].items():
        for attack, row in rows.items():
            shown.add_row(name, attack, *(told(row[measure]) for measure in MEASURES))
    Console(width=150).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--radius", type=float, default=0.05, help="in standard deviations of x_t")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--masks", type=int, default=32, help="of DF-RISE's map")
    parser.add_argument("--picture", choices=["final", "clean"], default="final")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/adversarial.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    attack = {"radius": asked.radius, "iterations": asked.iterations}
    score = functools.partial(scores_of_scene, masks=asked.masks, picture=asked.picture, attack=attack)
    settings = {"step": STEP, "masks": asked.masks, "picture": asked.picture, **attack}
    scores = over_scenes(score, asked.scenes, settings, asked.out, asked.workers)
    results = {"scenes": len(scores), "attack": settings, "table": summary(scores)}
    show(results)
    table = asked.out.with_suffix(".json")
    table.write_text(json.dumps(results, indent=2))
    print(table)


if __name__ == "__main__":
    main()
