"""Do the maps point at the objects? AUROC against the outlines that the judge reads off each generated picture.

    python benchmarks/localisation.py                       # 40 scenes with one small object, 40 with two
    python benchmarks/localisation.py --scenes 10 --masks 128 --published-masks 128

Per step: mean over scenes and its bootstrap interval. A random map and the centre prior stand beside every figure, and
what the clean prediction of the step shows of the objects itself: how much its colours differ from its background's.
Scenes in which the model did not draw as many things as it was told are passed over, and counted. The scenes are shared
out to processes of one thread each.
"""

import argparse
import functools
import json
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import drawn

import denoscope
from denoscope import DFRise
from denoscope.evaluation import auroc, bootstrap, centre_prior, on_grid
from denoscope.worlds.shapes.scenes import Scene

STEPS = {"first": 3, "early": 6, "middle": 15, "late": 24}
"""Of 30. At the first of them the object's place is hardly decided yet, as the clean prediction itself shows."""
FIRST_SEED = 7_000_000


def scores_of(
    trace: denoscope.Trace, mask: np.ndarray, masks: dict[str, int], seed: int
) -> dict[str, dict[str, float]]:
    """AUROC of every variant and baseline at every step."""
    rng, found = np.random.default_rng(seed), {}
    for variant, count in masks.items():
        maps = DFRise(num_masks=count, variant=variant, seed=seed)(trace, list(STEPS.values())).saliency.values
        enlarged = [on_grid(saliency, *mask.shape) for saliency in maps]
        found[variant] = {name: auroc(saliency, mask) for name, saliency in zip(STEPS, enlarged, strict=True)}
    grid = trace[0].sample.shape[-2:]
    found["random"] = {name: auroc(on_grid(rng.random(grid), *mask.shape), mask) for name in STEPS}
    found["clean prediction"] = {name: auroc(foreground(trace[index]), mask) for name, index in STEPS.items()}
    found["centre prior"] = dict.fromkeys(STEPS, auroc(centre_prior(*mask.shape), mask))
    return found


@torch.no_grad()
def foreground(step: denoscope.Step) -> np.ndarray:
    """How far the colours of a step's clean prediction are from their median, which is the background's, (64, 64)."""
    picture = step.clean()[0].numpy()
    return np.abs(picture - np.median(picture, axis=(1, 2), keepdims=True)).sum(axis=0)


def scores_of_scene(seed: int, count: int, masks: dict[str, int]) -> dict[str, dict[str, float]] | None:
    """Make a scene's picture and score its maps; None where the picture does not show `count` things."""
    found = drawn(Scene.random(seed, count=count, size="small" if count == 1 else None))
    return scores_of(*found, masks, seed) if found else None


def measure(count: int, scenes: int, masks: dict[str, int], workers: int) -> dict:
    """Scenes of one small object (count 1) or of two objects, until enough were drawn as told."""
    results, passed_over = [], 0
    score = functools.partial(scores_of_scene, count=count, masks=masks)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.imap(score, range(FIRST_SEED, FIRST_SEED + 3 * scenes))
        for scores in track(found, total=3 * scenes, description=f"{count} object(s)"):
            passed_over += scores is None
            results += [scores] if scores else []
            if len(results) == scenes:
                break
    methods = results[0] if results else {}
    table = {m: {name: vars(bootstrap([r[m][name] for r in results])) for name in STEPS} for m in methods}
    return {"scenes": len(results), "passed_over": passed_over, "masks": masks, "auroc": table}


def show(results: dict) -> None:
    for name, result in results.items():
        title = f"{name}: {result['scenes']} scenes, {result['passed_over']} passed over; masks {result['masks']}"
        shown = Table("map", *STEPS, title=title)
        for method, row in result["auroc"].items():
            shown.add_row(method, *(f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in row.values()))
        Console(width=120).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--masks", type=int, default=500, help="masks per step for the contrast form")
    parser.add_argument("--published-masks", type=int, default=64, help="masks per step for the published maps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/localisation.json"))
    asked = parser.parse_args()
    masks = dict(contrast=asked.masks, paper=asked.published_masks, reference=asked.published_masks)
    names = {1: "one small object", 2: "two objects"}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for count, name in names.items():
        results[name] = measure(count, asked.scenes, masks, asked.workers)
        asked.out.write_text(json.dumps(results, indent=2))
    show(results)
    print(asked.out)


if __name__ == "__main__":
    main()
