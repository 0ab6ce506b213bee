"""The step at which an attribute is decided, and the width of its decision, over scenes, with intervals."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from .likelihood import crossing

DECIDED_LEVELS = (0.25, 0.5, 0.75)
"""The levels at which the window of decision opens, is half-way, and closes."""


def across_scenes(scenes: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the results of one experiment on several scenes along a new dim `scene`.

    Raises `InputError` for fewer than two scenes, and for scenes of different steps or noise levels.
    """
    if len(scenes) < 2:
        raise InputError(f"There are {len(scenes)} scenes. An interval over scenes needs at least 2: add scenes.")
    first = scenes[0]
    for number, scene in enumerate(scenes):
        if scene.sizes["step"] != first.sizes["step"] or not np.allclose(scene["log_snr"], first["log_snr"], atol=1e-4):
            raise InputError(
                f"Scene {number} has the steps {scene['step'].values.tolist()} and scene 0 has "
                f"{first['step'].values.tolist()}, or their noise levels differ. Run all scenes at the same steps."
            )
    decided = [scene.drop_vars(["timestep", "log_snr"]) for scene in scenes]
    joined = xr.concat(decided, dim="scene", join="outer", combine_attrs="drop_conflicts")
    return joined.assign_coords(timestep=first["timestep"], log_snr=first["log_snr"])


def commitment(scenes: xr.Dataset, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Estimate when each attribute is decided, from an experiment on several scenes (`across_scenes`).

    `probability` (bound, attribute, step) is the mean over scenes, with `chance` (attribute) if it was measured. The
    curve above chance, (P − chance) / (1 − chance), crosses ½ at `commitment` and goes from ¼ to ¾ in `width`, both in
    steps (fractional) and, as `commitment_log_snr` and `width_log_snr`, in log-SNR (bound, attribute). `before`
    (attribute, other) is the share of resamples in which the attribute is decided before the other; a tie counts half.

    `bound` is low, estimate, high: percentile intervals over `resamples` draws of the scenes. A value is NaN where the
    curve does not cross within the steps; a curve that begins above a level crosses it at the first step.
    """
    weights = _resampled(scenes.sizes["scene"], resamples, seed)
    curves = _mean(scenes["decided"], weights)
    chance = _mean(scenes["chance"], weights) if "chance" in scenes else np.zeros((*curves.shape[:1], len(weights)))
    with np.errstate(divide="ignore", invalid="ignore"):
        above = (curves - chance[:, None]) / (1 - chance[:, None])
    places = np.array([_crossings_of_resamples(resampled.T) for resampled in above])  # attribute, resample, level
    along = {"": scenes["step"].values, "_log_snr": scenes["log_snr"].values}
    variables: dict[str, Any] = {"probability": (("bound", "attribute", "step"), _bounds(curves, level))}
    for name, axis in along.items():
        low, middle, high = np.moveaxis(_interpolated(places, axis), -1, 0)
        variables[f"commitment{name}"] = (("bound", "attribute"), _bounds(middle, level))
        variables[f"width{name}"] = (("bound", "attribute"), _bounds(_apart(low, high), level))
    variables["before"] = (("attribute", "other"), _before(places[:, 1:, 1]))
    variables["scenes"] = scenes["decided"].notnull().any(["step", "draw"]).sum("scene")
    if "chance" in scenes:
        variables["chance"] = (("attribute",), chance[:, 0])
    names = scenes["attribute"].values
    coords = {"attribute": names, "other": names, "bound": ["low", "estimate", "high"]}
    attrs = {**scenes.attrs, "interval": level, "resamples": resamples}
    return xr.Dataset(variables, coords | {k: scenes[k] for k in ("step", "timestep", "log_snr")}, attrs)


def _resampled(scenes: int, resamples: int, seed: int) -> np.ndarray:
    """Return the weight of each scene in each resample, (1 + resamples, scenes); in the first row all weigh 1."""
    drawn = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), resamples)
    return np.vstack([np.ones(scenes), drawn])


def _mean(values: xr.DataArray, weights: np.ndarray) -> np.ndarray:
    """Return weighted means over scenes and draws, (attribute, ..., row of weights); NaN is left out."""
    means = values.mean("draw").transpose("attribute", ..., "scene").values
    sums = np.nan_to_num(means) @ weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted: np.ndarray = sums / (np.isfinite(means) @ weights.T)
    return weighted


def _crossings_of_resamples(curves: np.ndarray) -> list[list[float]]:
    return [_crossings(curve) for curve in curves]


def _crossings(curve: np.ndarray) -> list[float]:
    """Return the step at which a curve above chance crosses each level: infinite if never, NaN without a curve."""
    if not np.isfinite(curve).any():
        return [np.nan] * len(DECIDED_LEVELS)
    steps = [crossing(curve, level, lasting=2) for level in DECIDED_LEVELS]
    return [step if np.isfinite(step) else np.inf for step in steps]


def _interpolated(places: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return the values of an axis at fractional places between its steps; infinite places stay infinite."""
    inside = np.interp(places, np.arange(len(axis)), axis)
    return np.where(np.isinf(places), np.inf, np.where(np.isnan(places), np.nan, inside))


def _apart(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(high), np.where(np.isnan(low), np.nan, np.inf), high - low)


def _bounds(values: np.ndarray, level: float) -> np.ndarray:
    """Return (low, estimate, high) of values (..., 1 + resamples), the estimate first; infinite becomes NaN.

    A resample without any scene that has the attribute is NaN and is left out.
    """
    tail, resampled = (1 - level) / 2, values[..., 1:]
    tails: list[tuple[float, Any]] = [(tail, "lower"), (1 - tail, "higher")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all resamples are NaN
        low, high = (np.nanquantile(resampled, q, axis=-1, method=how) for q, how in tails)
    bounds = np.stack([low, values[..., 0], high])
    return np.where(np.isfinite(bounds), bounds, np.nan)


def _before(places: np.ndarray) -> np.ndarray:
    """Return the share of resamples in which one attribute crosses before another, of places (attribute, resample)."""
    first, second = places[:, None], places[None]
    both = ~(np.isnan(first) | np.isnan(second))
    points = np.where(first < second, 1.0, np.where(first == second, 0.5, 0.0))
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = np.where(both, points, 0).sum(axis=-1) / both.sum(axis=-1)
    return shares


def in_order(result: xr.Dataset) -> Iterator[str]:
    """Yield the attributes of a `commitment` result in the order of their decision, undecided attributes last."""
    when = result["commitment"].sel(bound="estimate").fillna(np.inf)
    yield from (str(name) for name in when["attribute"].values[np.argsort(when.values, kind="stable")])
