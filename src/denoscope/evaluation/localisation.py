"""Does a map point at the object? Against masks that are known.

Every metric here is of a map (h, w) and a boolean mask of the same shape, and all but `mass_inside` look at the order
of the map's values alone: maps of different methods have no common scale or zero. All raise `InputError` for a mask
that is empty, covers everything or is of another size, and for a map with NaN or infinite values. A flat map is at
chance."""

import numpy as np
import xarray as xr
from scipy import ndimage, stats

from ..errors import InputError
from .metrics import metric, metrics_of, over_maps, without_gaps
from .stages import rank_agreement, share_inside


@metric("auroc", "localisation", (0, 1), True, "Hanley and McNeil 1982")
def auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Probability that a position of the object has a higher value than one outside it, ties counting half; 0 to 1.

    >>> auroc(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[False, True], [False, True]]))
    1.0

    0.5 is chance; below it the map points away.
    """
    saliency, mask = _comparable(saliency, mask)
    inside, outside = int(mask.sum()), int((~mask).sum())
    ranks = stats.rankdata(saliency)[mask.ravel()]
    return float((ranks.sum() - inside * (inside + 1) / 2) / (inside * outside))


def auroc_of_shifts(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`auroc` of the map moved by every cyclic shift, (h, w), that of the map as it is at [0, 0].

    Shifted, a map keeps how it varies and loses where: how often a map of this smoothness points as well by chance.
    """
    saliency, mask = _comparable(saliency, mask)
    inside, outside = int(mask.sum()), int((~mask).sum())
    ranks = stats.rankdata(saliency).reshape(saliency.shape)
    sums = np.fft.ifft2(np.fft.fft2(mask.astype(float)) * np.fft.fft2(ranks).conj()).real
    return np.asarray((sums - inside * (inside + 1) / 2) / (inside * outside))


@metric("average_precision", "localisation", (0, 1), True, "Buckley and Voorhees 2000")
def average_precision(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Σ (R_n − R_{n−1}) P_n over falling thresholds, P the precision and R the recall; 0 to 1.

    Chance is the object's share of the picture, so it says more than `auroc` where objects are small.
    """
    saliency, mask = _comparable(saliency, mask)
    hits, chosen = _by_threshold(saliency, mask)
    return float((np.diff(hits, prepend=0) * hits / chosen).sum() / mask.sum())


@metric("best_iou", "localisation", (0, 1), True, "Jaccard 1901, at the best threshold")
def best_iou(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union with the mask at whichever threshold it is largest; at least the object's share."""
    saliency, mask = _comparable(saliency, mask)
    return float(_ious(saliency, mask).max())


@metric("iou", "localisation", (0, 1), True, "Jaccard 1901, at the mask's area")
def iou(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union with the mask at a fixed threshold: as many positions as the mask has, the highest.

    The threshold is of the order and not of the values, half of the maximum for one, which would mean something else
    for a signed map, a sum and a ratio. Positions that tie with the last one chosen are chosen too.
    """
    saliency, mask = _comparable(saliency, mask)
    _, chosen = _by_threshold(saliency, mask)
    return float(_ious(saliency, mask)[np.argmax(chosen >= mask.sum())])


@metric("pointing", "localisation", (0, 1), True, "Zhang et al. 2016, the pointing game")
def pointing(saliency: np.ndarray, mask: np.ndarray, tolerance: float = 0.0) -> float:
    """Whether the highest position is on the object, or at most `tolerance` positions away from it: 1 or 0.

    Where several are the highest, the share of them that is: the expectation when one is drawn.
    """
    saliency, mask = _comparable(saliency, mask)
    near = ndimage.distance_transform_edt(~mask) <= tolerance
    return float(near[saliency == saliency.max()].mean())


@metric("spearman", "localisation", (-1, 1), True, "Spearman 1904")
def spearman(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Rank correlation with the mask; NaN for a flat map. A map without ties stays below 1, as the mask is all ties."""
    saliency, mask = _comparable(saliency, mask)
    return rank_agreement(saliency, mask.astype(float))


@metric("mass_inside", "localisation", (0, 1), True, "Fong and Vedaldi 2017, the share of the positive part")
def mass_inside(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Share of the map's positive part that is inside the mask; NaN where nothing is positive.

    For signed maps: one that is positive everywhere, whatever its shape, hardly differs from the object's share.
    """
    return share_inside(*_comparable(saliency, mask))


def localisation(saliency: xr.DataArray, mask: np.ndarray) -> xr.Dataset:
    """Every metric of localisation of every map, dims of `saliency` without y and x; each with its facts.

    >>> scores = localisation(DFRise()(trace, steps=[6, 15]).saliency, mask)          # doctest: +SKIP
    >>> scores.auroc.dims, scores.auroc.attrs["higher_is_better"]                     # doctest: +SKIP
    (('step',), True)

    Maps are enlarged bilinearly to the mask's size; raises `InputError` where its proportions are others, too.
    """
    height, width = np.shape(mask)
    if saliency.sizes["y"] * width != saliency.sizes["x"] * height:
        raise InputError(
            f"The maps are {saliency.sizes['y']} × {saliency.sizes['x']} and the mask is {height} × {width}, which has "
            "other proportions, so it is not of the same picture. Give the mask of the picture that the maps explain."
        )

    def scored(name: str) -> xr.DataArray:
        function = metrics_of("localisation")[name].function
        return over_maps(lambda m: function(on_grid(m, height, width), mask), saliency, name=name)

    return xr.Dataset({name: scored(name) for name in metrics_of("localisation")})


def _comparable(saliency: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, if the one can be held against the other."""
    saliency, mask = without_gaps(saliency), np.asarray(mask, bool)
    if saliency.shape != mask.shape:
        raise InputError(
            f"The map has shape {saliency.shape} and the mask {mask.shape}. Bring the map to the mask's size first: "
            "on_grid(saliency, *mask.shape)."
        )
    if not mask.any() or mask.all():
        raise InputError(
            "The mask is empty or covers everything, so nothing can be told apart. Give the object's mask."
        )
    return saliency, mask


def _by_threshold(saliency: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value of the map, falling: how many positions of the object, and how many of all, are at or above it."""
    places = np.unique(-saliency, return_inverse=True)[1].ravel()
    return np.bincount(places, mask.ravel()).cumsum(), np.bincount(places).cumsum()


def _ious(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Intersection over union at each value of the map as the threshold, falling."""
    hits, chosen = _by_threshold(saliency, mask)
    return hits / (chosen + mask.sum() - hits)


def on_grid(saliency: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) enlarged bilinearly to (height, width), cell centres on cell centres."""
    rows, columns = (
        (np.arange(large) + 0.5) * small / large - 0.5
        for small, large in zip(saliency.shape, (height, width), strict=True)
    )
    return ndimage.map_coordinates(saliency, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map (height, width) that knows nothing of the picture but that things tend to be in the middle."""
    y, x = np.mgrid[:height, :width]
    return -np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
