"""Does the schedule decide what the words count? Relevance of subject, relation and object in two-object captions.

    python benchmarks/roles.py                              # 100 captions
    python benchmarks/roles.py --captions 10 --variant reference

Captions of the shapes world say "object relation object", as the published experiment's do (100 sentences of Visual
Genome, "subject predicate object"). The subject's words are those of the thing named first, the object's those of the
other; articles and the background count for nobody. The total of a role is the relevance of its words, scaled to 0..1
over the words at every step, added up over the 30 steps of a run; the shares of the raw sums stand beside. Shares are
of the three roles' sum. Means over captions with bootstrap intervals; the same caption and seed under every schedule,
so differences are paired. What was measured is kept in a file: a second run goes on where the first stopped.
"""

import argparse
import functools
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import GUIDANCE, STEPS, model

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
FIRST_SEED = 8_000_000
ARTICLES = ("a", "an")


def roles(told: Caption) -> dict[str, list[str]]:
    """The words of each role, by their labels in a result."""
    labels, first, second = numbered(told.words), told.words_of(0), told.words_of(1)
    between = range(max(first) + 1, min(second))
    places = {"subject": first, "relation": [i for i in between if told.words[i] not in ARTICLES], "object": second}
    return {role: [labels[i] for i in own] for role, own in places.items()}


def measured(seed: int, variant: str) -> dict:
    """Relevance of each role at every step under every schedule, and the seconds it took."""
    began, told = time.perf_counter(), caption(Scene.random(seed, count=2))
    of = {}
    for schedule, options in SCHEDULES.items():
        run = dict(seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np", **options)
        found = Relevance(variant)(model().trace(str(told), schedule=schedule, **run))
        of[schedule] = {kind: by_role(found[kind], told) for kind in KINDS}
    return {"seed": seed, "caption": str(told), "relevance": of, "seconds": round(time.perf_counter() - began, 2)}


def by_role(relevance: xr.DataArray, told: Caption) -> dict[str, list[float]]:
    """The sum over a role's words at every step."""
    return {r: relevance.sel(token=words).sum("token").values.round(4).tolist() for r, words in roles(told).items()}


def measure(captions: int, variant: str, workers: int, out: Path) -> list[dict]:
    """Everything that the file does not hold yet, written down as it comes."""
    known = {int(r["seed"]): r for r in json.loads(out.read_text())["captions"]} if out.exists() else {}
    seeds = range(FIRST_SEED, FIRST_SEED + captions)
    missing = [seed for seed in seeds if seed not in known]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.imap_unordered(functools.partial(measured, variant=variant), missing)
        for result in track(found, total=len(missing), description=f"{variant}: captions"):
            known[result["seed"]] = result
            written(out, variant, list(known.values()))
    return [known[seed] for seed in seeds]


def written(out: Path, variant: str, captions: list[dict], **summary: object) -> None:
    """The file appears whole: one that is read while it is written, or cut off, is the one before."""
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps({"variant": variant, **summary, "captions": captions}))
    os.replace(partial, out)


def totals(results: list[dict], kind: str) -> np.ndarray:
    """(captions, schedules, roles)."""
    return np.array([[[sum(r["relevance"][s][kind][role]) for role in ROLES] for s in SCHEDULES] for r in results])


def shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=-1, keepdims=True)


def rows(values: np.ndarray, unit: str) -> list[dict]:
    """Mean of each role under each schedule, and each schedule's paired difference from uniform."""
    found = []
    for i, schedule in enumerate(SCHEDULES):
        for kind, own in (("mean", values[:, i]), ("minus uniform", values[:, i] - values[:, 0])):
            if kind == "mean" or i:
                intervals = {role: vars(bootstrap(own[:, j])) for j, role in enumerate(ROLES)}
                found.append({"schedule": schedule, "unit": unit, "kind": kind, **intervals})
    return found


def summary_of(results: list[dict]) -> list[dict]:
    scaled, raw = (totals(results, kind) for kind in KINDS)
    return rows(scaled, "total") + rows(100 * shares(scaled), SHARE) + rows(100 * shares(raw), f"raw {SHARE}")


def verdicts(table: list[dict]) -> dict[str, str]:
    """Whether early sampling does to the shares what was published, by the interval of the paired difference."""
    (early,) = [r for r in table if (r["schedule"], r["unit"], r["kind"]) == ("early", SHARE, "minus uniform")]
    return {role: verdict(sign * early[role]["low"], sign * early[role]["high"]) for role, sign in PATTERN.items()}


def verdict(one: float, other: float) -> str:
    if min(one, other) > 0:
        return "holds"
    return "is reversed" if max(one, other) < 0 else "is not decided: the interval holds 0"


def show(table: list[dict], results: list[dict], variant: str) -> None:
    seconds = np.mean([r["seconds"] for r in results])
    title = f"{variant}: {len(results)} captions, {seconds:.1f} s each; mean [95 % interval over captions]"
    shown = Table("schedule", "", *ROLES, title=title)
    for row in table:
        cells = (f"{row[r]['mean']:.1f} [{row[r]['low']:.1f}, {row[r]['high']:.1f}]" for r in ROLES)
        shown.add_row(row["schedule"], f"{row['unit']}, {row['kind']}", *cells)
    for schedule, published in PUBLISHED.items():
        shown.add_row(schedule, "published share, %", *(f"{100 * v / sum(published):.1f}" for v in published))
    Console(width=130).print(shown)
    for role, said in verdicts(table).items():
        moves = "lowers" if PATTERN[role] < 0 else "raises"
        print(f"Published: early sampling {moves} the {role}'s share. Here that {said}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--variant", choices=["paper", "reference"], default="paper")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="out/roles-VARIANT.json if left out")
    asked = parser.parse_args()
    out = asked.out or Path(f"out/roles-{asked.variant}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = measure(asked.captions, asked.variant, asked.workers, out)
    table = summary_of(results)
    written(out, asked.variant, results, table=table, verdicts=verdicts(table), published=PUBLISHED)
    show(table, results, asked.variant)
    print(out)


if __name__ == "__main__":
    main()
