"""Figure 5 of the paper on the bundled model: DF-RISE's map under each of six similarities.

    python benchmarks/ablation.py                          # 50 scenes, a quarter of an hour on two cores
    python benchmarks/ablation.py --scenes 10 --masks 128

Published: structure and cosine best, contrast worst. Measured here, at three steps of 30, with bootstrap intervals over
scenes of one small object and of two in turn: the areas of deletion (HIGHER is better) and insertion (LOWER is better:
the curves are distances, unlike those of a classifier), and the AUROC against the objects' true masks, in which 0.5 is
chance and less means that the map points away from the objects, as the paper's does on flat backgrounds.

All six have the same masks and the same predictions. The feature distance is one number a mask and not a map, so it
takes more masks to say something of a single position. Every scene is kept in --out, and a second call goes on where
the first was stopped.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from games import STEPS
from rich.console import Console
from rich.table import Table
from scenes import drawn, scene_of
from work import benchmark_parser, in_turn, over_scenes, table_path

from denoscope import Trace
from denoscope.attributors.base import Advance, choose
from denoscope.attributors.estimators import Estimator, MaskMoments, Surrogates, kept_mean, kept_ratio
from denoscope.attributors.masks import BalancedMasks
from denoscope.errors import InputError
from denoscope.evaluation import GAMES, auroc, bootstrap, games, on_grid, random_ranking
from denoscope.evaluation.games import coordinates_of, no_advance, portions_for
from denoscope.recording.steps import Step
from denoscope.report.leaderboard import cell_text
from denoscope.targets import FeatureCloseness, PredictionTarget, Similarity
from denoscope.vision.encoders import Features, load_encoder
from denoscope.vision.similarity import SIMILARITIES

HIGHER = {**{name: game.higher_is_better for name, game in GAMES.items()}, "auroc": True}
"""The measures, each True if higher is better."""
PUBLISHED = "structure and cosine best, contrast worst"
"""The order of figure 5."""


def similarities(encoder: Features) -> dict[str, PredictionTarget]:
    """Return the six of figure 5: structure, contrast, luminance, their product, cosine, features of pictures."""
    targets: dict[str, PredictionTarget] = {name: Similarity(name) for name in SIMILARITIES}
    targets["features"] = FeatureCloseness(encoder)
    return targets


def ablation(
    trace: Trace,
    targets: Mapping[str, PredictionTarget],
    steps: Sequence[int] | None = None,
    *,
    num_masks: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Make DF-RISE's paper map under each of several similarities, from one set of masks and one set of predictions.

    The maps are those of `replace(DFRise.paper(num_masks, seed=seed), target=target)`, at the price of one. Maps of
    scores are averaged as in the paper's variant. A target with one number a mask, such as a feature distance, is
    averaged as in RISE: Σ M s / Σ M (`kept_ratio`). `saliency` and `standard_error` have dims (similarity, step, y, x).
    Raises `InputError` without a target, or with fewer than 4 masks.
    """
    if not targets or num_masks < 4:
        raise InputError(
            f"An ablation was given {len(targets)} similarities and {num_masks} masks. Give at least one similarity, "
            "such as similarities(encoder), and at least 4 masks; 500 are usual."
        )
    chosen: list[Step] = choose(trace, steps)
    maps = [maps_of_step(step, targets, num_masks, seed, batch_size, advance or no_advance) for step in chosen]
    values = np.stack(maps, axis=2)
    dims, coords = ("similarity", "step", "y", "x"), {"similarity": list(targets), **coordinates_of(chosen)}
    attrs = {"title": "DF-RISE under several similarities", "published": PUBLISHED, "num_masks": num_masks}
    variables = {"saliency": (dims, values[0]), "standard_error": (dims, values[1])}
    return xr.Dataset(variables, coords, {**attrs, "seed": seed})


@torch.no_grad()
def maps_of_step(
    step: Step,
    targets: Mapping[str, PredictionTarget],
    num_masks: int,
    seed: int,
    batch_size: int | None,
    advance: Advance,
) -> np.ndarray:
    """Return maps and standard errors of a step, (2, targets, h, w)."""
    shape = step.layout.shape
    judges = [target.of(step) for target in targets.values()]
    surrogates_of = Surrogates.of(step, 0.5)
    moments = [MaskMoments.zero(shape, surrogates_of)] * len(judges)
    scalar = [False] * len(judges)
    for masks in BalancedMasks().stream(shape, seed, num_masks, batch_size or portions_for(step, None).size):
        samples = step.sample * torch.from_numpy(masks).to(step.sample)[:, None]
        outputs, surrogates = step.predict(samples), surrogates_of(masks)
        scores = [judge(samples, outputs).double().cpu().numpy() for judge in judges]
        scalar = [score.ndim == 1 for score in scores]
        moments = [m.with_masks(masks, score, surrogates) for m, score in zip(moments, scores, strict=True)]
        advance(len(masks))
    estimates = [estimator_of(one)(m) for m, one in zip(moments, scalar, strict=True)]
    return np.stack(estimates, axis=1)


def estimator_of(scalar: bool) -> Estimator:
    """Return the average for scores of one number a mask, or for maps of scores."""
    return kept_ratio if scalar else kept_mean


def scores_of_scene(seed: int, masks: int) -> dict[str, Any] | None:
    """Make a scene's picture and measure every similarity's map; None if it does not show the scene's things."""
    picture = drawn(scene_of(seed))
    if picture is None:
        return None
    (trace, mask), encoder, began = picture, load_encoder(), time.process_time()
    maps = ablation(trace, similarities(encoder), list(STEPS.values()), num_masks=masks, seed=seed).saliency
    explained = time.process_time()
    each: dict[str, xr.DataArray] = {name: maps.sel(similarity=name) for name in maps.similarity.values.tolist()}
    each["random"] = random_ranking(trace, list(STEPS.values()), seed=seed)
    scores = {}
    for name, saliency in each.items():
        areas = games(trace, saliency, encoder).auc
        scores[name] = {game: by_step(areas.sel(game=game).values) for game in GAMES}
        scores[name]["auroc"] = by_step([auroc(on_grid(one, *mask.shape), mask) for one in saliency.values])
    return {"scores": scores, "seconds": [explained - began, time.process_time() - explained]}


def by_step(values: Sequence[float]) -> dict[str, float]:
    """Return a value of each step by the name of the step."""
    return {name: float(value) for name, value in zip(STEPS, values, strict=True)}


def summary(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over scenes with its interval, by measure, similarity and step."""
    names = list(scores[0]["scores"])

    def interval(measure: str, name: str, step: str) -> dict[str, float]:
        return vars(bootstrap([scene["scores"][name][measure][step] for scene in scores]))

    return {m: {name: {step: interval(m, name, step) for step in STEPS} for name in names} for m in HIGHER}


def order(rows: dict[str, Any], higher: bool) -> list[str]:
    """Return the similarities from the best to the worst by their mean over steps."""
    mean = {n: np.mean([value["mean"] for value in row.values()]) for n, row in rows.items() if n != "random"}
    return sorted(mean, key=mean.__getitem__, reverse=higher)


def show(results: dict[str, Any], scenes: int) -> None:
    """Print a table for each measure, and the order of the similarities."""
    published = {"structure": "best", "cosine": "best", "contrast": "worst"}
    for measure, rows in results.items():
        better = "HIGHER is better" if HIGHER[measure] else "LOWER is better"
        table = Table("similarity", "published", *STEPS, title=f"{measure}, {better}; {scenes} scenes")
        for name, row in rows.items():
            table.add_row(name, published.get(name, ""), *map(cell_text, row.values()))
        Console(width=120).print(table)
        print(f"Published: {PUBLISHED}. Measured, best to worst: {', '.join(order(rows, HIGHER[measure]))}.\n")


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=50, out="out/ablation")
    parser.add_argument("--masks", type=int, default=512, help="masks per step, shared by all similarities")
    options = parser.parse_args()
    score = functools.partial(scores_of_scene, masks=options.masks)
    settings = {"masks": options.masks, "steps": STEPS}
    scores, _ = over_scenes(score, in_turn(options.scenes), options.scenes, settings, options)
    results = summary(scores)
    spent = np.mean([scene["seconds"] for scene in scores], axis=0)
    print(f"{spent[0]:.1f} s to explain a scene's {len(STEPS)} steps under all similarities, {spent[1]:.1f} s to play")
    show(results, len(scores))
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
