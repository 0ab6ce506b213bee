"""Does generation from coarse to fine survive when the denoiser gets a wrong time step?

    python benchmarks/time_conditioning.py                     # 16 scenes of two objects
    python benchmarks/time_conditioning.py --scenes 4 --masks 32

Each scene's picture is made again with a constant time step for the denoiser, and with the run's own time steps
shuffled; the scheduler gets the true ones. Means over scenes with bootstrap intervals of

- the picture: its distance to the one made with the true time steps, and the facts of the scene that it still shows;
- the map: rank agreement of DF-RISE's contrast form with the true one, for the same samples x_t, beside chance's;
- the order: the step at which half of each octave of the final picture is there (of its power, and of what stays), and
  the rank correlation of that with the octave's fineness, 1 being strictly coarse first.
"""

import functools
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scenes import FIRST_SEED, STEPS, picture_of
from work import benchmark_parser, over_scenes, table_path

import denoscope
from denoscope import DFRise
from denoscope.errors import InputError
from denoscope.evaluation import ConstantTime, ShuffledTime, bootstrap, record_with_other_times, time_agreement
from denoscope.evaluation.frequencies import band_agreement, band_powers, coarse_to_fine, emergence
from denoscope.report.leaderboard import cell_text
from denoscope.worlds.shapes.judge import judge
from denoscope.worlds.shapes.scenes import Scene

AT = (6, 15, 24)
"""The steps whose maps are compared, of 30."""
CONSTANT = (950, 500, 50)
ORDERS = {"power": band_powers, "stays": band_agreement}


def changes_for(trace: denoscope.Trace, seed: int) -> dict[str, Any]:
    """Return the functions from the true time step to the one that the denoiser gets, by their names."""
    constant = {f"always {t}": ConstantTime(t) for t in CONSTANT}
    return {"the truth": float, **constant, "shuffled": ShuffledTime.of(trace, seed)}


def facts_of(trace: denoscope.Trace, scene: Scene) -> dict[str, float]:
    """Return the facts of the scene that the picture shows, each from 0 to 1."""
    return {name: float(np.mean(values)) for name, values in asdict(judge(trace.image, scene)).items()}


def order_of(trace: denoscope.Trace) -> dict[str, float]:
    """Return the step from which each octave is there, and the rank correlation with its fineness."""
    pictures, order = trace.clean_decoded(), {}
    for name, measure in ORDERS.items():
        steps = emergence(measure(pictures))
        order |= {f"{name}, {int(band)}": float(step) for band, step in zip(steps.band, steps, strict=True)}
        order[f"{name}, coarse first"] = coarse_to_fine(steps.values)
    return order


def scores_of(seed: int, masks: int) -> dict[str, dict[str, float]]:
    """Return all values of one scene, by the time steps that the denoiser got."""
    scene = Scene.random(seed, count=2)
    trace = picture_of(scene)
    changes = changes_for(trace, seed)
    maps = time_agreement(DFRise(num_masks=masks), trace, changes, AT)
    scores = {}
    for name, change in changes.items():
        again = record_with_other_times(trace, change)
        distance = float(np.sqrt(np.mean((np.asarray(again.image) - np.asarray(trace.image)) ** 2)))
        agreed = {f"map, step {step}": float(maps.agreement.sel(time=name, step=step)) for step in AT}
        agreed["map, by chance"] = float(maps.random_level.sel(time=name).mean())
        scores[name] = {"distance": distance, **facts_of(again, scene), **agreed, **order_of(again)}
    return scores


def summary(values: list[float]) -> dict[str, float] | None:
    """Return mean and interval; None if fewer than two scenes have a value."""
    try:
        return vars(bootstrap(values))
    except InputError:
        return None


def show(results: dict[str, Any]) -> None:
    """Print the table of measures by condition."""
    conditions = list(results["table"])
    title = f"{results['scenes']} scenes, {STEPS} steps, {results['masks']} masks"
    table = Table("measure", *conditions, title=title)
    for measure in results["table"][conditions[0]]:
        table.add_row(measure, *(cell_text(results["table"][condition][measure]) for condition in conditions))
    Console(width=150).print(table)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=16, out="out/time_conditioning")
    parser.add_argument("--masks", type=int, default=64, help="masks per map")
    options = parser.parse_args()
    score = functools.partial(scores_of, masks=options.masks)
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    settings = {"masks": options.masks, "at": AT, "constant": CONSTANT}
    scenes, _ = over_scenes(score, seeds, options.scenes, settings, options)
    table: dict[str, Any] = {}
    for condition, measures in scenes[0].items():
        table[condition] = {m: summary([scene[condition][m] for scene in scenes]) for m in measures}
    results = {"scenes": len(scenes), "masks": options.masks, "table": table}
    show(results)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
