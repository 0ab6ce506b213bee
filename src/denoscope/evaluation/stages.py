"""Outline, features, details: measures of how an attribution map changes along a sequence.

All take raw signed maps (h, w). Measures of places use the positive part, which speaks for the class. Frequency and
the agreement with the last map use both signs. Along the study's four photographs these two run the same way in each,
whatever the method. The agreement with edges does not; it exposes a map that is only an edge detector. Concentration
(Gini) is left out: it hardly changes by gradients, and goes either way by Occlusion.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from scipy import fft, ndimage, stats

from ..errors import InputError
from .captions import captioned

CONTOUR = 0.03
"""Half width of the band that counts as the contour of a mask, as a share of the picture's longer side."""


def share_inside(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the positive part inside a boolean mask, 0 to 1; NaN where nothing is positive."""
    positive = np.clip(saliency, 0, None)
    total = positive.sum(dtype=float)
    return float(positive[mask].sum(dtype=float) / total) if total > 0 else float("nan")


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the band around the edge of a boolean mask, CONTOUR of the longer side to either side of it."""
    width = max(1, round(CONTOUR * max(mask.shape)))
    square = ndimage.generate_binary_structure(2, 2)
    wider = ndimage.binary_dilation(mask, square, width)
    return np.asarray(wider & ~ndimage.binary_erosion(mask, square, width, border_value=1))


def contour_preference(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return (c − i) / (c + i) of the mean positive part on the contour, c, and in the interior, i: −1 to 1.

    NaN where the mask is all contour, or nothing in it is positive.
    """
    band = contour(mask)
    interior = mask & ~band
    if not interior.any():
        return float("nan")
    positive = np.clip(saliency, 0, None)
    on, within = positive[band].mean(), positive[interior].mean()
    return float((on - within) / (on + within)) if on + within > 0 else float("nan")


def rank_agreement(saliency: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps, −1 to 1; NaN where one is constant."""
    if np.ptp(saliency) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(stats.spearmanr(saliency.ravel(), other.ravel()).statistic)


def edge_map(picture: np.ndarray) -> np.ndarray:
    """Return the length of the brightness gradient (Sobel) of a picture (h, w, 3): the map of an edge detector."""
    brightness = np.asarray(picture, dtype=float) @ np.array([0.299, 0.587, 0.114])
    return np.asarray(np.hypot(ndimage.sobel(brightness, 0), ndimage.sobel(brightness, 1)))


def mean_frequency(saliency: np.ndarray) -> float:
    """Return the mean radial frequency of the power spectrum, in cycles along the longer side.

    NaN for a constant map.
    """
    power = np.abs(fft.fft2(saliency - saliency.mean())) ** 2
    if power.sum() < 1e-24:
        return float("nan")
    rows, columns = (fft.fftfreq(n, 1 / max(saliency.shape)) for n in saliency.shape)
    return float((power * np.hypot(rows[:, None], columns)).sum() / power.sum())


def stages(saliency: xr.DataArray, picture: np.ndarray, mask: np.ndarray | None = None) -> xr.Dataset:
    """Compute every measure at every step: dims of `saliency` without y and x.

    `picture` (h, w, 3) in [0, 1] is the clean one, `mask` a boolean (h, w) of the object. Without a mask,
    `share_inside` and `contour_preference` are left out. `agreement_last` compares with the last step's map,
    `agreement_edges` with `edge_map`. Raises `InputError` where picture or mask have another size than the maps, or
    the mask is empty.
    """
    grid = (saliency.sizes["y"], saliency.sizes["x"])
    edges, last = edge_map(_of_size(picture, grid, "picture")), saliency.isel(step=-1, drop=True)
    measures: dict[str, Callable[[np.ndarray], float]] = {"frequency": mean_frequency}
    measures["agreement_edges"] = lambda each: rank_agreement(np.clip(each, 0, None), edges)
    if mask is not None:
        region = _region(mask, grid)
        measures["share_inside"] = lambda each: share_inside(each, region)
        measures["contour_preference"] = lambda each: contour_preference(each, region)
    one_map: dict[str, Any] = dict(input_core_dims=[["y", "x"]], vectorize=True)
    values = {name: xr.apply_ufunc(measure, saliency, **one_map) for name, measure in measures.items()}
    two_maps: dict[str, Any] = dict(input_core_dims=[["y", "x"]] * 2, vectorize=True)
    values["agreement_last"] = xr.apply_ufunc(rank_agreement, saliency, last, **two_maps)
    return captioned(values)


def _of_size(picture: np.ndarray, grid: tuple[int, int], name: str) -> np.ndarray:
    """Return the picture or mask; raises `InputError` where its size is not the maps'."""
    if picture.shape[:2] != grid:
        raise InputError(
            f"The {name} is {picture.shape[0]} × {picture.shape[1]} and the maps are {grid[0]} × {grid[1]}. "
            "Give it in the maps' size."
        )
    return picture


def _region(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mask as booleans; raises `InputError` where it covers nothing or everything."""
    region = _of_size(np.asarray(mask, dtype=bool), grid, "mask")
    if not region.any() or region.all():
        raise InputError("The mask is empty or covers the whole picture. Give one that covers the object alone.")
    return region
