"""Deletion and insertion on the bundled model: do the maps rank positions by what the next step depends on?

    python benchmarks/games.py                                     # 50 scenes, about an hour on two cores
    python benchmarks/games.py --scenes 10 --methods df-rise,lime
    python benchmarks/games.py --masks 500 --lime-samples 1000     # as published, twice that

This is `denoscope evaluate --checks games` at three steps of 30, with a number of masks for each kind of method. Means
over scenes, of one small object and of two in turn, with bootstrap intervals. The curves are distances of CLIP features
to the result of the untouched step: of DELETION a HIGHER area is better, of INSERTION a LOWER one. That is the opposite
of the games on a classifier (RISE), whose curves are a class's probability. The second table has one sign for both: how
much better than a random ranking of the same scene, above 0 is better.

Every scene is kept in --out, and a second call goes on where the first was stopped.
"""

import argparse
import json
from typing import Any

from evaluations import cells, intervals, scores_of
from rich.console import Console
from rich.table import Table
from work import benchmark_parser, table_path

from denoscope.attributors.base import list_methods
from denoscope.evaluation import BASELINES, GAMES

STEPS = {"early": 6, "middle": 15, "late": 24}
"""Of 30."""
METHODS = ("df-rise", "df-rise-contrast", "df-cam", "lime")
RANKINGS = [name for name in BASELINES if name != "constant"]
"""A constant map ranks nothing."""


def masks_of(options: argparse.Namespace) -> dict[str, int]:
    """Return the number of masks of each method; name the methods that do not exist and leave them out."""
    special = {
        "df-rise": options.published_masks,
        "df-rise-reference": options.published_masks,
        "lime": options.lime_samples,
    }
    masks = {}
    for name in options.methods.split(","):
        if name in list_methods():
            masks[name] = special.get(name, options.masks)
        else:
            print(f"There is no method {name}, so it is left out.")
    return masks


def show(results: dict[str, Any]) -> None:
    """Print the areas and the gains."""
    titles = {
        "auc": "Area under the curve. Deletion: HIGHER is better. Insertion: LOWER is better (unlike a classifier's).",
        "gain": "Gain over the random ranking of the same scene: above 0 is better in both games.",
    }
    for kind, title in titles.items():
        columns = [f"{game} {step}" for game in GAMES for step in STEPS]
        table = Table("map", *columns, title=f"{results['scenes']} scenes. {title}")
        for name, row in results[kind].items():
            table.add_row(name, *(cell for game in GAMES for cell in cells(row[game])))
        Console(width=160).print(table)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=50, out="out/games")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument(
        "--baselines", default=",".join(RANKINGS), help="shown beside the methods; gains are over random"
    )
    parser.add_argument("--masks", type=int, default=256, help="masks per step for DF-RISE's contrast form")
    parser.add_argument("--published-masks", type=int, default=64, help="masks per step for DF-RISE's paper form")
    parser.add_argument("--lime-samples", type=int, default=500)
    options = parser.parse_args()
    baselines = options.baselines.split(",")
    if "random" not in baselines or set(baselines) - set(RANKINGS):
        parser.error(f"--baselines {options.baselines}: random and any of {', '.join(RANKINGS)}")
    masks = masks_of(options)
    steps = list(STEPS.values())
    scores = scores_of(masks, "games", steps, options.scenes, options)
    scores = scores.sel(attributor=[*masks, *baselines])
    results: dict[str, Any] = {"scenes": scores.sizes["scene"], "auc": {}, "gain": {}}
    for game in GAMES:
        for kind, measure in (("auc", game), ("gain", f"{game} gain")):
            for name, row in intervals(scores.sel(measure=measure)).items():
                if kind == "auc" or name != "random":
                    results[kind].setdefault(name, {})[game] = row
    show(results)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
