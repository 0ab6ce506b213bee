"""Coarse before fine: when is each octave of the final picture there?

The theory that says so: Wang and Vastola 2023 for Gaussian data, where modes of large variance come first; natural
pictures have their variance in low frequencies.
"""

import numpy as np
import xarray as xr
from scipy import fft, stats

from ..errors import InputError
from ..timing.likelihood import crossing
from .metrics import metric


def band_powers(pictures: np.ndarray) -> xr.DataArray:
    """Power in each octave of radial frequency of pictures (steps, h, w, channels): (step, band).

    Bands are named by where they begin, 1, 2, 4, … cycles along the longer side; the last reaches to the corners. The
    mean, of frequency 0, is in none; with it the bands add up to the sum of squares. Mean over channels.
    """
    spectra = _spectra(pictures)
    return _by_band(np.abs(spectra) ** 2)


def band_agreement(pictures: np.ndarray) -> xr.DataArray:
    """How much of the last picture each octave already has, Re⟨F_t, F_T⟩: (step, band), in the units of `band_powers`.

    Power alone cannot tell detail that stays from detail that will be another; this counts what stays.
    """
    spectra = _spectra(pictures)
    return _by_band((spectra * spectra[-1].conj()).real)


def _spectra(pictures: np.ndarray) -> np.ndarray:
    """Fourier transforms of pictures (steps, h, w, channels), scaled so that energy stays."""
    values = np.asarray(pictures, dtype=np.float64)
    if values.ndim != 4 or min(values.shape[1:3]) < 4:
        raise InputError(
            f"The pictures have shape {values.shape}. Give them as (steps, height, width, channels), 4 or more a side, "
            "such as trace.clean_decoded()."
        )
    return fft.fft2(values, axes=(1, 2), norm="ortho")


def _by_band(values: np.ndarray) -> xr.DataArray:
    """Sums over each octave of values (steps, h, w, channels) on the grid of frequencies, mean over channels."""
    height, width = values.shape[1:3]
    longer = max(height, width)
    rows, columns = (fft.fftfreq(side, 1 / longer) for side in (height, width))
    radius = np.hypot(rows[:, None], columns)
    starts = 2 ** np.arange(int(np.log2(longer / 2)))
    band = np.searchsorted(starts, radius, side="right") - 1
    sums = [values[:, band == i].sum(axis=1).mean(axis=-1) for i in range(len(starts))]
    return xr.DataArray(np.stack(sums, axis=1), {"step": np.arange(len(values)), "band": starts}, ("step", "band"))


def emergence(powers: xr.DataArray, share: float = 0.5) -> xr.DataArray:
    """The step from which each band has at least `share` of what it has at the last: (band,), interpolated.

    NaN for a band that is empty at the end.
    """
    final = powers.isel(step=-1, drop=True)
    curves = (powers / final.where(final > 0)).transpose("step", "band").values
    found = [crossing(curve, share, lasting=len(curve)) for curve in curves.T]
    return xr.DataArray(found, {"band": powers.band}, ("band",))


@metric("coarse_to_fine", "order", (-1, 1), True, "Spearman 1904, of Wang and Vastola 2023's order")
def coarse_to_fine(emerged: np.ndarray) -> float:
    """Rank correlation of bands, from coarse to fine, with the steps of their emergence: 1 is strictly coarse first.

    NaN where fewer than three bands emerge, or all at once.
    """
    steps = np.asarray(emerged, dtype=np.float64)
    there = np.isfinite(steps)
    if there.sum() < 3 or np.ptp(steps[there]) == 0:
        return float("nan")
    return float(stats.spearmanr(np.flatnonzero(there), steps[there]).statistic)
