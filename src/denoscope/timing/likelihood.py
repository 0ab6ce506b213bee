"""When: how likely a classifier finds each label along a sequence, and when that rises."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, Interrupted
from ..vision.classifiers import Classifier
from ..vision.frames import Frame, FrameGroup, Frames

LEVELS = (0.05, 0.5, 0.9)
"""Onset, half and ninety per cent: the levels at which the study's published curves are compared."""

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
    """Softmax of each label at each frame and draw: dims (step, draw, label), values in [0, 1].

    `batch_size` pictures go through the classifier at once, of several frames where they have fewer; on a CPU small
    batches are the fastest. `advance` is told of the frames done. Raises `InputError` for an unknown label,
    `NumericsError` when the classifier gives NaN, and `Interrupted` with the frames done so far on Ctrl-C.
    """
    chosen = [classifier.index(label) for label in labels]
    if not chosen:
        raise InputError("No label was given. Give at least one whose likelihood is to be followed.")
    done: list[np.ndarray] = []
    try:
        for start in range(0, len(frames), batch_size):
            group = frames[start : start + batch_size]
            done += _probabilities(classifier, group, chosen, batch_size)
            if advance is not None:
                advance(len(group))
    except KeyboardInterrupt:
        partial = _curves(classifier, frames, chosen, done) if done else None
        message = f"Interrupted: the likelihood of {len(done)} of {len(frames)} frames was computed and is kept."
        raise Interrupted(message, partial) from None
    return _curves(classifier, frames, chosen, done)


@torch.inference_mode()
def _probabilities(
    classifier: Classifier, frames: Sequence[Frame], labels: Sequence[int], batch_size: int
) -> list[np.ndarray]:
    """Of each frame, (draws, labels)."""
    group = FrameGroup.of(frames)
    inputs = group.images if group.space == "input" else classifier.normalise(group.images)
    parts = [classifier.probabilities(chunk)[:, list(labels)] for chunk in inputs.split(batch_size)]
    return np.split(torch.cat(parts).float().cpu().numpy(), len(frames))


def _curves(classifier: Classifier, frames: Frames, labels: Sequence[int], done: Sequence[np.ndarray]) -> xr.DataArray:
    known = frames[: len(done)]
    coords = {
        "step": [frame.index for frame in known],
        "timestep": ("step", [frame.timestep for frame in known]),
        "log_snr": ("step", [frame.log_snr for frame in known]),
        "draw": np.arange(frames.draws),
        "label": [classifier.labels[index] for index in labels],
    }
    attrs = {"classifier": classifier.name, "kind": frames.kind, "range": "0 to 1"}
    return xr.DataArray(np.stack(done), coords, ("step", "draw", "label"), "likelihood", attrs)


def crossing(curve: np.ndarray, level: float, lasting: int = 5) -> float:
    """Where a curve (steps,) first rises to a level and stays there; NaN where it never does.

    >>> crossing(np.array([0.0, 0.2, 0.6, 0.9, 0.9, 0.9, 0.9]), 0.5)
    1.75

    In steps, interpolated between two; a crossing lasts when the curve stays at or above the level for `lasting`
    steps, or to its end. A curve that starts above the level crosses at 0. NaN values are passed over.
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
    """The step where a curve (steps,) rises most, its slope averaged over `smoothing` steps; NaN if it never rises."""
    slope = np.gradient(np.asarray(curve, dtype=float)) if len(curve) > 1 else np.zeros(1)
    width = min(smoothing, len(slope))
    mean = np.convolve(slope, np.ones(width) / width, mode="same")
    return float(np.argmax(mean)) if mean.max() > 0 else float("nan")


def moments(curves: xr.DataArray, levels: Sequence[float] = LEVELS, lasting: int = 5) -> xr.Dataset:
    """When each label is recognised, per draw: `crossing` (label, draw, level), `steepest`, `final` (label, draw).

    `window` (label, draw) is the critical window's width: from the first level's crossing to the last's. All in steps;
    NaN says that it never happened.
    """
    if any(not 0 < level < 1 for level in levels) or len(set(levels)) < len(levels) or list(levels) != sorted(levels):
        raise InputError(f"The levels {list(levels)} cannot be used. Give rising likelihoods between 0 and 1.")

    def along(function: Callable[[np.ndarray], float]) -> xr.DataArray:
        return xr.apply_ufunc(function, curves, input_core_dims=[["step"]], vectorize=True)

    found = [along(functools.partial(crossing, level=level, lasting=lasting)) for level in levels]
    crossings: xr.DataArray = xr.concat(found, dim="level")
    crossings = crossings.assign_coords(level=list(levels)).transpose("label", "draw", "level")
    window = crossings.isel(level=-1, drop=True) - crossings.isel(level=0, drop=True)
    parts = {"crossing": crossings, "steepest": along(steepest), "window": window, "final": curves.isel(step=-1)}
    parts["final"] = parts["final"].drop_vars(["step", "timestep", "log_snr"], errors="ignore")
    return xr.Dataset(parts, attrs={**curves.attrs, "lasting": lasting, "unit": "steps"})


def over_draws(found: xr.Dataset, share: float = 0.9) -> xr.Dataset:
    """Median over draws and the interval that holds at least `share` of them: adds `quantile` (low, median, high).

    A draw in which a level was never crossed counts as later than every other; a quantile that falls on it is NaN.
    `crossed` (label, level) is the share of draws that crossed.
    """
    tails = {"low": (1 - share) / 2, "median": 0.5, "high": (1 + share) / 2}
    method: dict[str, Any] = {"low": "lower", "median": "higher", "high": "higher"}

    def quantile(values: xr.DataArray, name: str) -> xr.DataArray:
        return values.fillna(np.inf).quantile(tails[name], "draw", method=method[name]).drop_vars("quantile")

    rows = [xr.Dataset({k: quantile(v, name) for k, v in found.items()}) for name in tails]
    whole = xr.concat(rows, dim="quantile").assign_coords(quantile=list(tails))
    whole = whole.where(np.isfinite(whole))
    whole["crossed"] = found["crossing"].notnull().mean("draw")
    return whole.assign_attrs(found.attrs)


def comparison(recognised: Mapping[str, xr.DataArray], levels: Sequence[float] = LEVELS) -> "xr.Dataset":
    """One table of photographs and labels: `over_draws(moments(...))` of each, along a new dim `photograph`."""
    if not recognised:
        raise InputError("There is nothing to compare. Give the curves of at least one photograph.")
    found = [over_draws(moments(curves, levels)) for curves in recognised.values()]
    return xr.concat(found, dim="photograph", join="outer").assign_coords(photograph=list(recognised))


def rows_of(table: xr.Dataset) -> Iterator[dict[str, object]]:
    """The rows of a comparison, one for each photograph and label that it has: plain values, never as NaN."""
    for photograph in table["photograph"].values:
        for label in table["label"].values:
            own = table.sel(photograph=photograph, label=label)
            if own["final"].isnull().all():
                continue
            yield {"photograph": str(photograph), "label": str(label), **_row(own)}


def _row(own: xr.Dataset) -> dict[str, object]:
    row: dict[str, object] = {}
    for level in own["level"].values:
        row[f"{level:g}"] = tuple(float(v) for v in own["crossing"].sel(level=level).values)
    for name in ("steepest", "window", "final"):
        row[name] = tuple(float(v) for v in own[name].values)
    return row


def around_window(curves: xr.DataArray, count: int = 10, margin: float = 0.25) -> list[int]:
    """`count` step indices around the critical window of the first label, evenly spread, the last step among them.

    The window goes from the median onset to the median crossing of the highest level (to the end where it is never
    crossed), widened by `margin` of its width on both sides. Without any onset the steps are spread over the whole.
    """
    steps = curves["step"].values
    if count >= len(steps):
        return [int(step) for step in steps]
    found = over_draws(moments(curves.isel(label=[0]))).sel(quantile="median")["crossing"].isel(label=0)
    low, high = float(found[0]), float(found[-1])
    low, high = (0.0 if np.isnan(low) else low), (len(steps) - 1.0 if np.isnan(high) else high)
    spare = margin * max(high - low, count)
    first, last = max(0.0, low - spare), min(len(steps) - 2.0, high + spare)
    if last - first < count - 2:
        first, last = max(0.0, last - (count - 2)), max(last, count - 2.0)
    chosen = np.unique(np.linspace(first, last, count - 1).round().astype(int))
    return [int(steps[i]) for i in [*chosen, len(steps) - 1]]
