"""When an attribute is decided and how widely, over scenes, with intervals."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from .likelihood import crossing

LEVELS = (0.25, 0.5, 0.75)
"""Where the window of decision opens, its middle, where it closes."""


def across(scenes: Sequence[xr.Dataset]) -> xr.Dataset:
    """The results of one experiment on several scenes, along a new dim `scene`.

    Raises `InputError` for fewer than two, or where steps or noise levels differ.
    """
    if len(scenes) < 2:
        raise InputError(f"An interval over scenes needs at least 2 of them; there are {len(scenes)}. Add scenes.")
    first = scenes[0]
    for number, found in enumerate(scenes):
        if found.sizes["step"] != first.sizes["step"] or not np.allclose(found["log_snr"], first["log_snr"], atol=1e-4):
            raise InputError(
                f"Scene {number} was asked at the steps {found['step'].values.tolist()} and scene 0 at "
                f"{first['step'].values.tolist()}, or their noise levels differ. Ask all scenes at the same steps."
            )
    own = [found.drop_vars(["timestep", "log_snr"]) for found in scenes]
    joined = xr.concat(own, dim="scene", join="outer", combine_attrs="drop_conflicts")
    return joined.assign_coords(timestep=first["timestep"], log_snr=first["log_snr"])


def commitment(scenes: xr.Dataset, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """When each attribute is decided, from an experiment on several scenes (`across`).

    `probability` (bound, attribute, step) is the mean over scenes, with `chance` (attribute) where it was measured. The
    curve above chance, (P − chance) / (1 − chance), crosses ½ at `commitment` and goes from ¼ to ¾ in `width`, both in
    steps (fractional) and, as `commitment_log_snr` and `width_log_snr`, in log-SNR (bound, attribute). `before`
    (attribute, other) is the share of resamples in which the one is decided before the other, ties counting half.

    `bound` is low, estimate, high: percentile intervals over `resamples` draws of the scenes. A value is NaN where the
    curve does not cross within the steps asked; a curve that begins above a level crosses it at the first of them.
    """
    weights = _resampled(scenes.sizes["scene"], resamples, seed)
    curves = _mean(scenes["decided"], weights)
    chance = _mean(scenes["chance"], weights) if "chance" in scenes else np.zeros((*curves.shape[:1], len(weights)))
    with np.errstate(divide="ignore", invalid="ignore"):
        above = (curves - chance[:, None]) / (1 - chance[:, None])
    places = np.array([[_crossings(row) for row in rows.T] for rows in above])  # attribute, resample, level
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
    """How often each scene counts (1 + resamples, scenes); the first row is the scenes themselves."""
    drawn = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), resamples)
    return np.vstack([np.ones(scenes), drawn])


def _mean(values: xr.DataArray, weights: np.ndarray) -> np.ndarray:
    """Means over scenes and draws, (attribute, ..., row of weights); scenes of which nothing is known count nothing."""
    known = values.mean("draw").transpose("attribute", ..., "scene").values
    sums = np.nan_to_num(known) @ weights.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums / (np.isfinite(known) @ weights.T)


def _crossings(curve: np.ndarray) -> list[float]:
    """Where a curve above chance crosses each level, infinitely late where it never does, NaN where there is none."""
    if not np.isfinite(curve).any():
        return [np.nan] * len(LEVELS)
    found = np.array([crossing(curve, level, lasting=2) for level in LEVELS])
    return np.where(np.isfinite(found), found, np.inf).tolist()


def _interpolated(places: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Places between measured steps on an axis of theirs; what is never crossed stays infinite."""
    inside = np.interp(places, np.arange(len(axis)), axis)
    return np.where(np.isinf(places), np.inf, np.where(np.isnan(places), np.nan, inside))


def _apart(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(high), np.where(np.isnan(low), np.nan, np.inf), high - low)


def _bounds(values: np.ndarray, level: float) -> np.ndarray:
    """(low, estimate, high) of values (..., 1 + resamples), whose first is the estimate; infinite is NaN.

    Resamples of which nothing can be said, NaN, count nothing: those that drew no scene of which something is known.
    """
    tail, resampled = (1 - level) / 2, values[..., 1:]
    tails: list[tuple[float, Any]] = [(tail, "lower"), (1 - tail, "higher")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of none that can be said anything of
        low, high = (np.nanquantile(resampled, q, axis=-1, method=how) for q, how in tails)
    found = np.stack([low, values[..., 0], high])
    return np.where(np.isfinite(found), found, np.nan)


def _before(places: np.ndarray) -> np.ndarray:
    """How often the one is crossed before the other, of places (attribute, resample)."""
    first, second = places[:, None], places[None]
    known = ~(np.isnan(first) | np.isnan(second))
    with np.errstate(invalid="ignore"):
        return np.where(known, (first < second) + 0.5 * (first == second), 0).sum(axis=-1) / known.sum(axis=-1)


def in_order(found: xr.Dataset) -> Iterator[str]:
    """The attributes as they are decided, the first one first; those that never are come last."""
    when = found["commitment"].sel(bound="estimate").fillna(np.inf)
    yield from (str(name) for name in when["attribute"].values[np.argsort(when.values, kind="stable")])
