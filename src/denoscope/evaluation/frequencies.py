"""Coarse before fine: from which step on is each octave of the final picture there?

The theory: Wang and Vastola 2023 for Gaussian data, where modes of large variance come first; natural pictures have
their variance in low frequencies.
"""

import numpy as np
import xarray as xr
from scipy import fft, stats

from ..errors import InputError
from ..timing.likelihood import crossing
from .metrics import metric


def band_powers(pictures: np.ndarray) -> xr.DataArray:
    """Return the power in each octave of radial frequency of pictures (steps, h, w, channels): (step, band).

    A band is named by its lowest frequency: 1, 2, 4, … cycles along the longer side. The last reaches to the corners.
    The mean, of frequency 0, is in none; with it the bands add up to the sum of squares. Mean over channels.
    """
    spectra = _spectra(pictures)
    return _by_band(np.abs(spectra) ** 2)


def band_agreement(pictures: np.ndarray) -> xr.DataArray:
    """Return how much of the last picture each octave already has, Re⟨F_t, F_T⟩: (step, band).

    In the units of `band_powers`. Power counts every detail; this counts the details that stay to the end.
    """
    spectra = _spectra(pictures)
    return _by_band((spectra * spectra[-1].conj()).real)


def _spectra(pictures: np.ndarray) -> np.ndarray:
    """Return the Fourier transforms of pictures (steps, h, w, channels), scaled so that energy stays."""
    values = np.asarray(pictures, dtype=np.float64)
    if values.ndim != 4 or min(values.shape[1:3]) < 4:
        raise InputError(
            f"The pictures have shape {values.shape}. Give them as (steps, height, width, channels), 4 or more a side, "
            "such as trace.clean_decoded()."
        )
    return np.asarray(fft.fft2(values, axes=(1, 2), norm="ortho"))


def _by_band(values: np.ndarray) -> xr.DataArray:
    """Sum values (steps, h, w, channels) on the grid of frequencies over each octave, mean over channels."""
    height, width = values.shape[1:3]
    longer = max(height, width)
    rows, columns = (fft.fftfreq(side, 1 / longer) for side in (height, width))
    radius = np.hypot(rows[:, None], columns)
    starts = 2 ** np.arange(int(np.log2(longer / 2)))
    band = np.searchsorted(starts, radius, side="right") - 1
    sums = [values[:, band == i].sum(axis=1).mean(axis=-1) for i in range(len(starts))]
    return xr.DataArray(np.stack(sums, axis=1), {"step": np.arange(len(values)), "band": starts}, ("step", "band"))


def emergence(powers: xr.DataArray, share: float = 0.5) -> xr.DataArray:
    """Return the step from which each band has at least `share` of its last value: (band,), interpolated.

    NaN for a band that is empty at the end.
    """
    final = powers.isel(step=-1, drop=True)
    curves = (powers / final.where(final > 0)).transpose("step", "band").values
    steps = [crossing(curve, share, lasting=len(curve)) for curve in curves.T]
    return xr.DataArray(steps, {"band": powers.band}, ("band",))


@metric(
    "coarse_to_fine",
    "coarse before fine",
    "order",
    -1,
    1,
    True,
    "Spearman 1904, of Wang and Vastola 2023's order",
    chance=0.0,
    text="Rank correlation of bands, from coarse to fine, with their steps of emergence.",
)
def coarse_to_fine(emerged: np.ndarray) -> float:
    """Return the rank correlation of bands, from coarse to fine, with their steps of emergence.

    1 is strictly coarse first. NaN where fewer than three bands emerge, or all at once.
    """
    steps = np.asarray(emerged, dtype=np.float64)
    there = np.isfinite(steps)
    if there.sum() < 3 or np.ptp(steps[there]) == 0:
        return float("nan")
    return float(stats.spearmanr(np.flatnonzero(there), steps[there]).statistic)
