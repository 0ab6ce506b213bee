"""Do the maps point at the objects? AUROC against the outlines that the judge reads off each generated picture.

    python benchmarks/localisation.py                       # 80 scenes, of one small object and of two in turn
    python benchmarks/localisation.py --scenes 10 --masks 128 --published-masks 128

This is `denoscope evaluate --checks localisation` of the forms of DF-RISE, with another number of masks for the
published ones. Per step: mean over scenes and its bootstrap interval, of about --scenes scenes with one small object,
and of as many with two. Beside every figure stand a random map, the centre prior, and the objects as the clean
prediction of the step shows them itself: how much its colours differ from its background's. Scenes that the model did
not draw as prompted are skipped. Every scene is kept in --out, and a second call goes on where the first was stopped.
"""

import json
from typing import Any

from evaluations import cells, intervals, scores_of
from rich.console import Console
from rich.table import Table
from work import benchmark_parser, table_path

STEPS = {"first": 3, "early": 6, "middle": 15, "late": 24}
"""Of 30. At the first of them the object's place is hardly decided yet, as the clean prediction itself shows."""
MAPS = {
    "df-rise-contrast": "contrast",
    "df-rise": "paper",
    "df-rise-reference": "reference",
    "random": "random",
    "clean colours": "clean prediction",
    "centre prior": "centre prior",
}
"""The maps that are shown, and their names in the table."""


def show(results: dict[str, Any]) -> None:
    """Print a table for each kind of scene."""
    for kind, result in results.items():
        table = Table("map", *STEPS, title=f"{kind}: {result['scenes']} scenes; masks {result['masks']}")
        for name, row in result["auroc"].items():
            table.add_row(MAPS[name], *cells(row))
        Console(width=120).print(table)


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=40, out="out/localisation")
    parser.add_argument("--masks", type=int, default=500, help="masks per step for the contrast form")
    parser.add_argument("--published-masks", type=int, default=64, help="masks per step for the published maps")
    options = parser.parse_args()
    published = options.published_masks
    masks = {"df-rise-contrast": options.masks, "df-rise": published, "df-rise-reference": published}
    scores = scores_of(masks, "localisation", list(STEPS.values()), 2 * options.scenes, options)
    auroc = scores.sel(measure="auroc", attributor=list(MAPS))
    names = auroc.scene.values.tolist()
    results = {}
    for kind, rest in (("one small object", 0), ("two objects", 1)):
        of_kind = auroc.sel(scene=[name for name in names if int(name) % 2 == rest])  # odd seeds have two objects
        if of_kind.sizes["scene"] < 2:
            print(f"{kind}: {of_kind.sizes['scene']} scenes are too few for an interval. Give more --scenes.")
            continue
        results[kind] = {"scenes": of_kind.sizes["scene"], "masks": masks, "auroc": intervals(of_kind)}
    show(results)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
