"""The scores of all trials together: one labelled array, its intervals over pictures, and the leaderboard."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..evaluation.baselines import BASELINES
from ..evaluation.intervals import over_scenes
from ..report.leaderboard import table_of, with_intervals
from .checks.registry import CHECKS, measure_facts
from .checks.sanity import verdicts
from .pictures import TrialSettings
from .trial import Maps, Trial

SCORE_DIMS = ("measure", "scene", "attributor", "step")


def gather(settings: TrialSettings, trials: Sequence[Trial], maps: Mapping[str, Maps]) -> xr.Dataset:
    """Return all trials as `score` (measure, scene, attributor, step), NaN if a measure does not apply or failed.

    The measures that checks derive from the scores of all methods stand behind the measured ones. `saliency` holds the
    maps, by the name of the trial's subject, where all pictures have one size.
    """
    methods = [*settings.methods, *BASELINES]
    scores = _scores(settings, trials, methods)
    baseline = xr.DataArray([name in BASELINES for name in methods], {"attributor": methods}, ("attributor",))
    dataset = xr.Dataset({"score": _with_derived(scores), "baseline": baseline})
    saliency = _saliency([maps[trial.subject.name] for trial in trials], methods)
    if saliency is not None:
        dataset["saliency"] = (("scene", "attributor", "step", "y", "x"), saliency)
    return dataset


def _scores(settings: TrialSettings, trials: Sequence[Trial], methods: Sequence[str]) -> xr.DataArray:
    measures: dict[str, None] = {}
    for trial in trials:
        for by_measure in trial.scores.values():
            measures |= dict.fromkeys(by_measure)
    coords: dict[str, list[Any]] = {
        "measure": list(measures),
        "scene": [trial.subject.name for trial in trials],
        "attributor": list(methods),
        "step": list(settings.steps_shown),
    }
    values = np.full([len(labels) for labels in coords.values()], np.nan)
    scores = xr.DataArray(values, coords, SCORE_DIMS)
    for trial in trials:
        for method, by_measure in trial.scores.items():
            for measure, by_step in by_measure.items():
                place = {"measure": measure, "scene": trial.subject.name, "attributor": method}
                scores.loc[place] = by_step
    return scores


def _with_derived(scores: xr.DataArray) -> xr.DataArray:
    """Return the scores with the measures that checks derive from them."""
    parts = [scores]
    measured = set(scores["measure"].values.tolist())
    for check in CHECKS.values():
        if check.derive is None or measured.isdisjoint(measure.name for measure in check.measures):
            continue
        derived = check.derive(scores)
        check.refuse_unknown(list(derived))
        parts += [values.expand_dims(measure=[name]) for name, values in derived.items()]
    return xr.concat(parts, "measure")


def _saliency(maps_of_scenes: Sequence[Maps], methods: Sequence[str]) -> np.ndarray | None:
    """Return every map, (scene, attributor, step, y, x), NaN if a method failed; None for pictures of several sizes."""
    shapes = {maps[method].shape for maps in maps_of_scenes for method in methods if method in maps}
    if len(shapes) != 1:
        return None
    gap = np.full(shapes.pop(), np.nan, np.float32)
    rows = []
    for maps in maps_of_scenes:
        rows.append([maps.get(method, gap) for method in methods])
    return np.array(rows)


def summarise(scores: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
    """Return the scores with their intervals over pictures, and the leaderboard as plain values."""
    with_interval = with_intervals(scores, over_scenes(scores["score"]))
    return with_interval, table_of(with_interval, verdicts(scores), measure_facts())
