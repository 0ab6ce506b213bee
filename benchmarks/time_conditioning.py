"""Does generation from coarse to fine survive when the denoiser is told a wrong time step?

    python benchmarks/time_conditioning.py                     # 16 scenes of two objects
    python benchmarks/time_conditioning.py --scenes 4 --masks 32

Each scene's picture is made once more with the denoiser told a constant time step, and with the run's own time steps
shuffled; the scheduler is not misled. Means over scenes with bootstrap intervals of

- the picture: its distance to the one made truly, and which facts of the scene the judge still finds;
- the map: rank agreement of DF-RISE's contrast form with the true one, for the same samples x_t, beside chance's;
- the order: the step at which half of each octave of the final picture is there (of its power, and of what stays), and
  the rank correlation of that with the octave's fineness, 1 being strictly coarse first.
"""

import argparse
import functools
import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import STEPS, picture_of

import denoscope
from denoscope import DFRise
from denoscope.errors import InputError
from denoscope.evaluation import (
    ConstantTime,
    ShuffledTime,
    bootstrap,
    record_with_other_times,
    time_agreement,
)
from denoscope.evaluation.frequencies import band_agreement, band_powers, coarse_to_fine, emergence
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import Scene

FIRST_SEED = 8_000_000
AT = (6, 15, 24)
"""The steps whose maps are compared, of 30."""
CONSTANT = (950, 500, 50)
ORDERS = {"power": band_powers, "stays": band_agreement}


def changes_for(trace: denoscope.Trace, seed: int) -> dict:
    constant = {f"always {t}": ConstantTime(t) for t in CONSTANT}
    return {"the truth": float, **constant, "shuffled": ShuffledTime.of(trace, seed)}


def facts_of(trace: denoscope.Trace, scene: Scene) -> dict[str, float]:
    """Which facts of the scene the picture shows, each from 0 to 1."""
    return {name: float(np.mean(shown)) for name, shown in asdict(judge(trace.image, scene)).items()}


def order_of(trace: denoscope.Trace) -> dict[str, float]:
    """When each octave is there, in steps, and whether coarse ones come first."""
    pictures, found = trace.clean_decoded(), {}
    for name, measure in ORDERS.items():
        steps = emergence(measure(pictures))
        found |= {f"{name}, {int(band)}": float(step) for band, step in zip(steps.band, steps, strict=True)}
        found[f"{name}, coarse first"] = coarse_to_fine(steps.values)
    return found


def scores_of(seed: int, masks: int) -> dict[str, dict[str, float]]:
    """Everything measured of one scene, by what the denoiser was told."""
    torch.set_num_threads(1)
    scene = Scene.random(seed, count=2)
    trace = picture_of(scene)
    changes = changes_for(trace, seed)
    maps = time_agreement(DFRise(num_masks=masks, variant="contrast"), trace, changes, AT)
    found = {}
    for name, change in changes.items():
        again = record_with_other_times(trace, change)
        distance = float(np.sqrt(np.mean((np.asarray(again.image) - np.asarray(trace.image)) ** 2)))
        agreed = {f"map, step {step}": float(maps.agreement.sel(time=name, step=step)) for step in AT}
        agreed["map, by chance"] = float(maps.random_level.sel(time=name).mean())
        found[name] = {"distance": distance, **facts_of(again, scene), **agreed, **order_of(again)}
    return found


def summary(values: list[float]) -> dict[str, float] | None:
    """Mean and interval; None where fewer than two scenes have a value."""
    try:
        return vars(bootstrap(values))
    except InputError:
        return None


def cell(interval: dict[str, float] | None) -> str:
    return "–" if interval is None else "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**interval)


def show(results: dict) -> None:
    conditions = list(results["table"])
    title = f"{results['scenes']} scenes, {STEPS} steps, {results['masks']} masks"
    shown = Table("measure", *conditions, title=title)
    for measure in results["table"][conditions[0]]:
        shown.add_row(measure, *(cell(results["table"][condition][measure]) for condition in conditions))
    Console(width=150).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--masks", type=int, default=64, help="masks per map")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/time_conditioning.json"))
    asked = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + asked.scenes)
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        made = pool.imap(functools.partial(scores_of, masks=asked.masks), seeds)
        found = list(track(made, description="scenes", total=asked.scenes))
    table = {c: {m: summary([scene[c][m] for scene in found]) for m in found[0][c]} for c in found[0]}
    results = {"scenes": len(found), "masks": asked.masks, "table": table}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(results, indent=2))
    show(results)
    print(asked.out)


if __name__ == "__main__":
    main()
