"""The likelihood of a classifier's labels along a sequence, and the moments at which it rises."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, Interrupted
from ..vision.classifiers import Classifier
from ..vision.frames import Frame, FrameGroup, Frames

LIKELIHOOD_LEVELS = (0.05, 0.5, 0.9)
"""Onset, half and ninety per cent: the likelihoods at which the study's published curves are compared."""

SMOOTHING = 5
"""Frames over which the slope of a curve is averaged before its steepest place is sought."""


def likelihood(
    classifier: Classifier,
    frames: Frames,
    labels: Sequence[str | int],
    *,
    batch_size: int = 4,
    advance: Callable[[int], None] | None = None,
) -> xr.DataArray:
    """Compute the softmax of each label at each frame and draw: dims (step, draw, label), values in [0, 1].

    `batch_size` pictures go through the classifier at once, of several frames if a frame has fewer; on a CPU small
    batches are the fastest. `advance` is called with the number of frames done. Raises `InputError` for an unknown
    label, `NumericsError` if the classifier gives NaN, and `Interrupted` with the frames done so far on Ctrl-C.
    """
    indices = [classifier.index(label) for label in labels]
    if not indices:
        raise InputError("No label was given. Give at least one label to follow.")
    done: list[np.ndarray] = []
    try:
        for start in range(0, len(frames), batch_size):
            group = frames[start : start + batch_size]
            done += _probabilities(classifier, group, indices, batch_size)
            if advance is not None:
                advance(len(group))
    except KeyboardInterrupt:
        partial = _curves(classifier, frames, indices, done) if done else None
        message = f"Interrupted: the likelihood of {len(done)} of {len(frames)} frames was computed."
        raise Interrupted(message, partial) from None
    return _curves(classifier, frames, indices, done)


@torch.inference_mode()
def _probabilities(
    classifier: Classifier, frames: Sequence[Frame], labels: Sequence[int], batch_size: int
) -> list[np.ndarray]:
    """Return an array (draws, labels) for each frame."""
    group = FrameGroup.of(frames)
    inputs = group.images if group.space == "input" else classifier.normalise(group.images)
    batches = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    parts = [classifier.probabilities(batch)[:, list(labels)] for batch in batches]
    return np.split(torch.cat(parts).float().cpu().numpy(), len(frames))


def _curves(classifier: Classifier, frames: Frames, labels: Sequence[int], done: Sequence[np.ndarray]) -> xr.DataArray:
    finished = frames[: len(done)]
    coords = {
        "step": [frame.index for frame in finished],
        "timestep": ("step", [frame.timestep for frame in finished]),
        "log_snr": ("step", [frame.log_snr for frame in finished]),
        "draw": np.arange(frames.draws),
        "label": [classifier.labels[index] for index in labels],
    }
    attrs = {"classifier": classifier.name, "kind": frames.kind, "range": "0 to 1"}
    return xr.DataArray(np.stack(done), coords, ("step", "draw", "label"), "likelihood", attrs)


def crossing(curve: np.ndarray, level: float, lasting: int = 5) -> float:
    """Return the step at which a curve (steps,) first rises to a level and stays there; NaN if it never does.

    >>> crossing(np.array([0.0, 0.2, 0.6, 0.9, 0.9, 0.9, 0.9]), 0.5)
    1.75

    The step is fractional, interpolated between two steps. A crossing lasts if the curve stays at or above the level
    for `lasting` steps, or to its end. A curve that starts above the level crosses at 0. NaN values are skipped.
    """
    curve = np.asarray(curve, dtype=float)
    places = np.flatnonzero(np.isfinite(curve))
    values = curve[places]
    above = values >= level
    starts = np.flatnonzero(above & ~np.concatenate([[False], above[:-1]]))
    for start in starts:
        if above[start : start + lasting].all():
            return _interpolated(places, values, int(start), level)
    return float("nan")


def _interpolated(places: np.ndarray, values: np.ndarray, start: int, level: float) -> float:
    if start == 0:
        return float(places[0])
    share = (level - values[start - 1]) / (values[start] - values[start - 1])
    return float(places[start - 1] + share * (places[start] - places[start - 1]))


def steepest(curve: np.ndarray, smoothing: int = SMOOTHING) -> float:
    """Return the step at which a curve (steps,) rises most, its slope averaged over `smoothing` steps.

    NaN if it never rises.
    """
    slope = np.gradient(np.asarray(curve, dtype=float)) if len(curve) > 1 else np.zeros(1)
    width = min(smoothing, len(slope))
    mean = np.convolve(slope, np.ones(width) / width, mode="same")
    return float(np.argmax(mean)) if mean.max() > 0 else float("nan")


def moments(curves: xr.DataArray, levels: Sequence[float] = LIKELIHOOD_LEVELS, lasting: int = 5) -> xr.Dataset:
    """Return the moments at which each draw recognises each label, in steps; NaN for a moment that never comes.

    The variables are `crossing` (label, draw, level), `steepest` (label, draw) and `window` (label, draw), the critical
    window's width from the first level's crossing to the last's. `final` (label, draw) is the last likelihood. Raises
    `InputError` for levels that do not rise, or are not between 0 and 1.
    """
    rising = all(low < high for low, high in pairwise(levels))
    if not rising or not all(0 < level < 1 for level in levels):
        raise InputError(f"The levels {list(levels)} cannot be used. Give rising likelihoods between 0 and 1.")

    def along(function: Callable[[np.ndarray], float]) -> xr.DataArray:
        values: xr.DataArray = xr.apply_ufunc(function, curves, input_core_dims=[["step"]], vectorize=True)
        return values

    by_level = [along(functools.partial(crossing, level=level, lasting=lasting)) for level in levels]
    crossings: xr.DataArray = xr.concat(by_level, dim="level")
    crossings = crossings.assign_coords(level=list(levels)).transpose("label", "draw", "level")
    window = crossings.isel(level=-1, drop=True) - crossings.isel(level=0, drop=True)
    parts = {"crossing": crossings, "steepest": along(steepest), "window": window, "final": curves.isel(step=-1)}
    parts["final"] = parts["final"].drop_vars(["step", "timestep", "log_snr"], errors="ignore")
    return xr.Dataset(parts, attrs={**curves.attrs, "lasting": lasting, "unit": "steps"})


def over_draws(moments: xr.Dataset, share: float = 0.9) -> xr.Dataset:
    """Summarise moments over draws, along a new dim `quantile`: low, median, high.

    At least `share` of the draws lie between low and high. A draw that never crosses a level counts as later than every
    other draw; a quantile that falls on it is NaN.
    `crossed` (label, level) is the share of draws that crossed.
    """
    tails = {"low": (1 - share) / 2, "median": 0.5, "high": (1 + share) / 2}
    method: dict[str, Any] = {"low": "lower", "median": "higher", "high": "higher"}

    def quantile(values: xr.DataArray, name: str) -> xr.DataArray:
        return values.fillna(np.inf).quantile(tails[name], "draw", method=method[name]).drop_vars("quantile")

    rows = [xr.Dataset({key: quantile(values, name) for key, values in moments.items()}) for name in tails]
    summary = xr.concat(rows, dim="quantile").assign_coords(quantile=list(tails))
    summary = summary.where(np.isfinite(summary))
    summary["crossed"] = moments["crossing"].notnull().mean("draw")
    return summary.assign_attrs(moments.attrs)


def comparison(
    curves_by_photograph: Mapping[str, xr.DataArray], levels: Sequence[float] = LIKELIHOOD_LEVELS
) -> xr.Dataset:
    """Join `over_draws(moments(...))` of several photographs' curves along a new dim `photograph`."""
    if not curves_by_photograph:
        raise InputError("There is nothing to compare. Give the curves of at least one photograph.")
    summaries = [over_draws(moments(curves, levels)) for curves in curves_by_photograph.values()]
    table = xr.concat(summaries, dim="photograph", join="outer")
    return table.assign_coords(photograph=list(curves_by_photograph))


def rows_of(table: xr.Dataset) -> Iterator[dict[str, object]]:
    """Yield a row of plain values for each photograph and label of a comparison; a moment that never comes is NaN."""
    for photograph in table["photograph"].values:
        for label in table["label"].values:
            moments_of_label = table.sel(photograph=photograph, label=label)
            if moments_of_label["final"].isnull().all():
                continue
            yield {"photograph": str(photograph), "label": str(label), **_row(moments_of_label)}


def _row(moments_of_label: xr.Dataset) -> dict[str, object]:
    row: dict[str, object] = {}
    for level in moments_of_label["level"].values:
        row[f"{level:g}"] = tuple(float(v) for v in moments_of_label["crossing"].sel(level=level).values)
    for name in ("steepest", "window", "final"):
        row[name] = tuple(float(v) for v in moments_of_label[name].values)
    return row


def around_window(curves: xr.DataArray, count: int = 10, margin: float = 0.25) -> list[int]:
    """Return `count` step indices, evenly spread around the critical window of the first label, and the last step.

    The window goes from the median onset to the median crossing of the highest level, or to the end without one. It is
    widened by `margin` of its width on both sides. Without any onset the steps are spread over the whole sequence.
    """
    steps = curves["step"].values
    if count >= len(steps):
        return [int(step) for step in steps]
    crossings = over_draws(moments(curves.isel(label=[0]))).sel(quantile="median")["crossing"].isel(label=0)
    low, high = float(crossings[0]), float(crossings[-1])
    if np.isnan(low):
        low = 0.0
    if np.isnan(high):
        high = len(steps) - 1.0
    spare = margin * max(high - low, count)
    first, last = max(0.0, low - spare), min(len(steps) - 2.0, high + spare)
    if last - first < count - 2:
        first, last = max(0.0, last - (count - 2)), max(last, count - 2.0)
    chosen = np.unique(np.linspace(first, last, count - 1).round().astype(int))
    return [int(steps[i]) for i in [*chosen, len(steps) - 1]]
