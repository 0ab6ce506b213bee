"""Does a map point at the object? Metrics against known masks.

Every metric here takes a map (h, w), or (frames, h, w), and a boolean mask of the same shape. All but `mass_inside` use
only the order of the map's values, since maps of different methods have no common scale or zero. All raise `InputError`
for a mask that is empty, covers everything or has another size, and for a map with NaN or infinite values. A flat map
is at chance.
"""

import numpy as np
import xarray as xr
from scipy import ndimage, stats

from ..errors import InputError
from .metrics import Metric, map_dims, metric, metrics_of, over_maps, without_gaps
from .stages import rank_agreement, share_inside


@metric(
    "auroc",
    "AUROC",
    "localisation",
    0,
    1,
    True,
    "Hanley and McNeil 1982",
    chance=0.5,
    text="Against the objects’ true places; 0.5 is chance.",
)
def auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the probability that a position of the object has a higher value than one outside it, 0 to 1.

    >>> auroc(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[False, True], [False, True]]))
    1.0

    Ties count half. 0.5 is chance; below it the map points away.
    """
    saliency, mask = _comparable(saliency, mask)
    inside, outside = int(mask.sum()), int((~mask).sum())
    ranks = stats.rankdata(saliency)[mask.ravel()]
    return float((ranks.sum() - inside * (inside + 1) / 2) / (inside * outside))


def auroc_of_shifts(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the `auroc` of the map moved by every cyclic shift, (h, w); the unmoved map is at [0, 0].

    A shifted map varies as before but lies elsewhere. So these are the values of a map as smooth as this by chance.
    """
    saliency, mask = _comparable(saliency, mask)
    inside, outside = int(mask.sum()), int((~mask).sum())
    ranks = stats.rankdata(saliency).reshape(saliency.shape)
    sums = np.fft.ifft2(np.fft.fft2(mask.astype(float)) * np.fft.fft2(ranks).conj()).real
    return np.asarray((sums - inside * (inside + 1) / 2) / (inside * outside))


@metric(
    "average_precision",
    "average precision",
    "localisation",
    0,
    1,
    True,
    "Buckley and Voorhees 2000",
    text="Chance is the objects’ share.",
)
def average_precision(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return Σ (R_n − R_{n−1}) P_n over falling thresholds, P the precision and R the recall; 0 to 1.

    Chance is the object's share of the picture, so it says more than `auroc` where objects are small.
    """
    saliency, mask = _comparable(saliency, mask)
    hits, chosen = _by_threshold(saliency, mask)
    return float((np.diff(hits, prepend=0) * hits / chosen).sum() / mask.sum())


@metric("best_iou", "IoU, best threshold", "localisation", 0, 1, True, "Jaccard 1901, at the best threshold")
def best_iou(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the largest intersection over union with the mask at any threshold; at least the object's share."""
    saliency, mask = _comparable(saliency, mask)
    return float(_ious(saliency, mask).max())


@metric("iou", "IoU, the mask’s area", "localisation", 0, 1, True, "Jaccard 1901, at the mask's area")
def iou(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the intersection over union with the mask of the highest positions, as many as the mask has.

    The threshold follows the order of the values. Half of the maximum, for example, would mean something else for a
    signed map, a sum and a ratio. Positions that tie with the last one chosen are chosen too.
    """
    saliency, mask = _comparable(saliency, mask)
    _, chosen = _by_threshold(saliency, mask)
    return float(_ious(saliency, mask)[np.argmax(chosen >= mask.sum())])


@metric(
    "pointing",
    "pointing game",
    "localisation",
    0,
    1,
    True,
    "Zhang et al. 2016, the pointing game",
    text="Is the map’s maximum on an object?",
)
def pointing(saliency: np.ndarray, mask: np.ndarray, tolerance: float = 0.0) -> float:
    """Return 1 if the highest position is on the object, or at most `tolerance` positions away from it, else 0.

    Where several positions are the highest, return the share of them that is: the expectation when one is drawn.
    """
    saliency, mask = _comparable(saliency, mask)
    near = ndimage.distance_transform_edt(~mask) <= tolerance
    return float(near[saliency == saliency.max()].mean())


@metric("spearman", "rank correlation with the mask", "localisation", -1, 1, True, "Spearman 1904", chance=0.0)
def spearman(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the rank correlation with the mask; NaN for a flat map.

    A map without ties stays below 1, as the mask has only two values.
    """
    saliency, mask = _comparable(saliency, mask)
    return rank_agreement(saliency, mask.astype(float))


@metric(
    "mass_inside",
    "share of the positive part inside",
    "localisation",
    0,
    1,
    True,
    "Fong and Vedaldi 2017, the share of the positive part",
)
def mass_inside(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the map's positive part that is inside the mask; NaN where nothing is positive.

    It is meant for signed maps. For a map that is positive everywhere it hardly differs from the object's share.
    """
    return share_inside(*_comparable(saliency, mask))


def localisation(saliency: xr.DataArray, mask: np.ndarray) -> xr.Dataset:
    """Compute every metric of localisation of every map: dims of `saliency` without those of a map, with their facts.

    >>> scores = localisation(DFRise()(trace, steps=[6, 15]).saliency, mask)
    >>> scores.auroc.dims, scores.auroc.attrs["higher_is_better"]
    (('step',), True)

    Maps are enlarged linearly to the mask's size: (height, width), or (frames, height, width) for maps with frames.
    Raises `InputError` where mask and maps have other proportions, or one of them has frames.
    """
    height, width = np.shape(mask)[-2:]
    if np.ndim(mask) != len(map_dims(saliency)):
        raise InputError(
            f"The maps have the dims {map_dims(saliency)} and the mask has shape {np.shape(mask)}. Give a mask of the "
            "same dims: one for all frames is np.stack([mask] * frames)."
        )
    if saliency.sizes["y"] * width != saliency.sizes["x"] * height:
        raise InputError(
            f"The maps are {saliency.sizes['y']} × {saliency.sizes['x']} and the mask is {height} × {width}, which has "
            "other proportions, so it is not of the same picture. Give the mask of the picture that the maps explain."
        )

    def scores(compute: Metric) -> xr.DataArray:
        return over_maps(lambda each: compute(on_grid(each, *np.shape(mask)), mask), saliency, name=compute.name)

    return xr.Dataset({name: scores(compute) for name, compute in metrics_of("localisation").items()})


def _comparable(saliency: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return map and mask as arrays; raises `InputError` where they cannot be compared."""
    saliency, mask = without_gaps(saliency), np.asarray(mask, bool)
    if saliency.ndim != mask.ndim:
        raise InputError(
            f"The map has shape {saliency.shape} and the mask {mask.shape}. Give one map at a time: (h, w), or "
            "(frames, h, w) for a clip, and a mask of the same dims."
        )
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
    """Count the positions at or above each value of the map, values falling: of the object, and of the picture."""
    places = np.unique(-saliency, return_inverse=True)[1].ravel()
    return np.bincount(places, mask.ravel()).cumsum(), np.bincount(places).cumsum()


def _ious(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the intersection over union at each value of the map as the threshold, values falling."""
    hits, chosen = _by_threshold(saliency, mask)
    return np.asarray(hits / (chosen + mask.sum() - hits))


def on_grid(saliency: np.ndarray, *shape: int) -> np.ndarray:
    """Enlarge a map (h, w) or (frames, h, w) linearly to a shape of as many dims, cell centres on cell centres."""
    centres = [_centres(small, large) for small, large in zip(saliency.shape, shape, strict=True)]
    places = np.meshgrid(*centres, indexing="ij")
    return np.asarray(ndimage.map_coordinates(saliency, places, order=1, mode="nearest"))


def _centres(small: int, large: int) -> np.ndarray:
    """Return the places of the centres of `large` cells, in cells of a row of `small` ones."""
    return (np.arange(large) + 0.5) * small / large - 0.5


def centre_prior(height: int, width: int) -> np.ndarray:
    """Return a map (height, width) that falls with the distance from the centre, where things tend to be."""
    y, x = np.mgrid[:height, :width]
    return np.asarray(-np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5))
