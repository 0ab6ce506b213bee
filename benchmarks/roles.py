"""Does the schedule decide what the words count? Relevance of subject, relation and object in two-object captions.

    python benchmarks/roles.py                              # 100 captions
    python benchmarks/roles.py --captions 10 --variant reference

Captions of the shapes world say "object relation object", as the published experiment's do (100 sentences of Visual
Genome, "subject predicate object"). The subject's words are those of the thing named first, the object's those of the
other; articles and the background count for nobody. The total of a role is the relevance of its words, scaled to 0..1
over the words at every step, added up over the 30 steps of a run; the shares of the raw sums stand beside. Shares are
of the three roles' sum. Means over captions with bootstrap intervals; the same caption and seed under every schedule,
so differences are paired. Every caption is kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json
import time
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scenes import FIRST_SEED, GUIDANCE, STEPS, model
from work import benchmark_parser, over_scenes, table_path

from denoscope import Relevance
from denoscope.evaluation import bootstrap
from denoscope.recording.prompts import numbered
from denoscope.worlds.shapes.scenes import Caption, Scene, caption

SHIFT = 60.0
SCHEDULES = {"uniform": {}, "early": {"shift": SHIFT}, "late": {"shift": SHIFT}}
ROLES = ("subject", "relation", "object")
KINDS = ("relevance_scaled", "relevance")
"""The published totals add up what is scaled to 0..1 over the words at every step; raw, some steps count more."""
SHARE = "share, %"
PUBLISHED = {"uniform": (2117, 423, 1800), "early": (1777, 474, 1890), "late": (2021, 424, 1754)}
"""Totals of subject, relation and object over 100 sentences (Park, Ju, Lee 2024)."""
PATTERN = {"subject": -1, "object": 1}
"""The published pattern: what early sampling does to the share."""
ARTICLES = ("a", "an")


def roles(worded: Caption) -> dict[str, list[str]]:
    """Return the words of each role, by their labels in a result."""
    labels, first, second = numbered(worded.words), worded.words_of(0), worded.words_of(1)
    between = range(max(first) + 1, min(second))
    relation = [i for i in between if worded.words[i] not in ARTICLES]
    places = {"subject": first, "relation": relation, "object": second}
    return {role: [labels[i] for i in places[role]] for role in places}


def relevance_of(seed: int, variant: str) -> dict[str, Any]:
    """Return the relevance of each role at every step under every schedule, and the seconds that it took."""
    began, worded = time.perf_counter(), caption(Scene.random(seed, count=2))
    relevance = {}
    for schedule, options in SCHEDULES.items():
        run = dict(seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", **options)
        result = getattr(Relevance, variant)()(model().trace(str(worded), schedule=schedule, **run))
        relevance[schedule] = {kind: by_role(result[kind], worded) for kind in KINDS}
    seconds = round(time.perf_counter() - began, 2)
    return {"seed": seed, "caption": str(worded), "relevance": relevance, "seconds": seconds}


def by_role(relevance: xr.DataArray, worded: Caption) -> dict[str, list[float]]:
    """Return the sum over a role's words at every step."""
    sums = {}
    for role, words in roles(worded).items():
        sums[role] = relevance.sel(token=words).sum("token").values.round(4).tolist()
    return sums


def totals(results: list[dict[str, Any]], kind: str) -> np.ndarray:
    """Return the sums over steps, (captions, schedules, roles)."""
    table = np.zeros((len(results), len(SCHEDULES), len(ROLES)))
    for i, result in enumerate(results):
        for j, schedule in enumerate(SCHEDULES):
            table[i, j] = [sum(result["relevance"][schedule][kind][role]) for role in ROLES]
    return table


def shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=-1, keepdims=True)


def rows(values: np.ndarray, unit: str) -> list[dict[str, Any]]:
    """Return the mean of each role under each schedule, and each schedule's paired difference from uniform."""
    table = []
    for i, schedule in enumerate(SCHEDULES):
        kinds = {"mean": values[:, i]}
        if i > 0:
            kinds["minus uniform"] = values[:, i] - values[:, 0]
        for kind, shares_of_roles in kinds.items():
            intervals = {role: vars(bootstrap(shares_of_roles[:, j])) for j, role in enumerate(ROLES)}
            table.append({"schedule": schedule, "unit": unit, "kind": kind, **intervals})
    return table


def summary_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scaled, raw = (totals(results, kind) for kind in KINDS)
    return rows(scaled, "total") + rows(100 * shares(scaled), SHARE) + rows(100 * shares(raw), f"raw {SHARE}")


def verdicts(table: list[dict[str, Any]]) -> dict[str, str]:
    """Return for each role whether early sampling moves its share as published, by the paired difference."""
    (early,) = [r for r in table if (r["schedule"], r["unit"], r["kind"]) == ("early", SHARE, "minus uniform")]
    return {role: verdict(sign * early[role]["low"], sign * early[role]["high"]) for role, sign in PATTERN.items()}


def verdict(one: float, other: float) -> str:
    if min(one, other) > 0:
        return "holds"
    return "is reversed" if max(one, other) < 0 else "is not decided: the interval holds 0"


def show(table: list[dict[str, Any]], results: list[dict[str, Any]], variant: str) -> None:
    """Print the table and the verdicts."""
    seconds = np.mean([r["seconds"] for r in results])
    title = f"{variant}: {len(results)} captions, {seconds:.1f} s each; mean [95 % interval over captions]"
    printed = Table("schedule", "", *ROLES, title=title)
    for row in table:
        cells = (f"{row[r]['mean']:.1f} [{row[r]['low']:.1f}, {row[r]['high']:.1f}]" for r in ROLES)
        printed.add_row(row["schedule"], f"{row['unit']}, {row['kind']}", *cells)
    for schedule, published in PUBLISHED.items():
        printed.add_row(schedule, "published share, %", *(f"{100 * v / sum(published):.1f}" for v in published))
    Console(width=130).print(printed)
    for role, outcome in verdicts(table).items():
        moves = "lowers" if PATTERN[role] < 0 else "raises"
        print(f"Published: early sampling {moves} the {role}'s share. Here that {outcome}.")


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=100, out="out/roles", option="--captions")
    parser.add_argument("--variant", choices=["paper", "reference"], default="paper")
    options = parser.parse_args()
    options.out = options.out.with_name(f"{options.out.name}-{options.variant}")
    score = functools.partial(relevance_of, variant=options.variant)
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    results, _ = over_scenes(score, seeds, options.scenes, {"variant": options.variant, "steps": STEPS}, options)
    table = summary_of(results)
    summary = {"variant": options.variant, "table": table, "verdicts": verdicts(table), "published": PUBLISHED}
    table_path(options).write_text(json.dumps(summary, indent=2))
    show(table, results, options.variant)
    print(table_path(options))


if __name__ == "__main__":
    main()
