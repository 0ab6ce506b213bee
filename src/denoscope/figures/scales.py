"""Colour scales of maps: limits, outliers, flat maps."""

from typing import NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.colors import Colormap

from .theme import DIVERGING, SEQUENTIAL

OUTLIER_PERC = 5
"""Per cent of the summed magnitude that lie beyond the end of a clipped colour scale; see `outlier_scale`."""


class Limits(NamedTuple):
    """The raw values at the two ends of a colour scale; equal ends mean that there is nothing to show.

    On a signed scale zero is the middle, and the two signs have different hues.
    """

    low: float
    high: float
    signed: bool = False

    @property
    def flat(self) -> bool:
        return self.low == self.high

    def cmap(self, chosen: str | Colormap | None = None) -> Colormap:
        """Return the colour map chosen, or the one that suits the signs of the values."""
        return matplotlib.colormaps.get_cmap(chosen or (DIVERGING if self.signed else SEQUENTIAL))


def colour_limits(result: xr.Dataset, signed: bool | None = None) -> Limits:
    """Return the limits of one colour scale for all maps of a result; the steps of the result share it.

    `colour_limits(method)` is shared by all steps, `colour_limits(method.sel(step=8))` is that step's own. A scale is
    signed when it is asked to be, else as the method's attribute `signed` says, else when a value is negative.
    """
    values = result["saliency"].values
    values = values[np.isfinite(values)]
    if is_flat(values):
        value = float(values[0]) if values.size else 0.0
        return Limits(value, value)
    low, high = float(values.min()), float(values.max())
    if result.attrs.get("signed", low < 0) if signed is None else signed:
        reach = max(-low, high)
        return Limits(-reach, reach, signed=True)
    return Limits(low, high)


def error_limits(result: xr.Dataset) -> Limits:
    """Return the limits of standard errors: from zero to half of the map's range, or to the largest error.

    At full colour, two standard errors are as large as the map's range.
    """
    errors, limits = result["standard_error"].values, colour_limits(result)
    largest = float(errors[np.isfinite(errors)].max(initial=0.0))
    reach = limits.high if limits.signed else limits.high - limits.low
    return Limits(0.0, max(largest, reach / 2))


def outlier_scale(saliency: np.ndarray, outlier_perc: float = OUTLIER_PERC) -> float:
    """Return the end of a map's scale without outliers, for a map of any shape; 0 for a map of zeros or NaN.

    It is the smallest magnitude above which at most `outlier_perc` per cent of the sum of magnitudes lie, as in
    Captum's heat maps.

    >>> outlier_scale(np.arange(1.0, 101.0), 5)  # 99 and 100 are 3.9 % of the sum
    98.0
    """
    magnitudes = np.sort(np.abs(saliency[np.isfinite(saliency)]), axis=None).astype(float)
    if not magnitudes.size:
        return 0.0
    sums = np.cumsum(magnitudes)
    return float(magnitudes[np.searchsorted(sums, (1 - outlier_perc / 100) * sums[-1])])


def clipped_limits(result: xr.Dataset, outlier_perc: float = OUTLIER_PERC, signed: bool | None = None) -> Limits:
    """Return the limits of a signed colour scale that no outlier stretches; those of an unsigned scale as they are."""
    limits = colour_limits(result, signed)
    if not limits.signed:
        return limits
    reach = outlier_scale(result["saliency"].values, outlier_perc)
    return Limits(-reach, reach, signed=True)


def is_flat(values: np.ndarray) -> bool:
    """Return True if the finite values differ by no more than rounding does."""
    values = values[np.isfinite(values)]
    return not values.size or bool(np.ptp(values) <= 1e-6 * np.abs(values).max())
