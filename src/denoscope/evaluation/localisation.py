"""Does a map point at the object? Against masks that are known."""

import numpy as np
from scipy import ndimage, stats

from ..bundled.judge import find, matched
from ..bundled.scenes import Scene, coverage
from ..errors import InputError


def auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Probability that a position of the object has a higher value than one outside it, ties counting half; 0 to 1.

    >>> auroc(np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[False, True], [False, True]]))
    1.0

    `saliency` and `mask` have the same shape (h, w). 0.5 is chance; below it the map points away. Raises `InputError`
    when the mask is empty, full or of another shape.
    """
    mask = np.asarray(mask, bool)
    if saliency.shape != mask.shape:
        raise InputError(
            f"The map has shape {saliency.shape} and the mask {mask.shape}. Bring the map to the mask's size first: "
            "on_grid(saliency, *mask.shape)."
        )
    inside, outside = int(mask.sum()), int((~mask).sum())
    if not inside or not outside:
        raise InputError(
            "The mask is empty or covers everything, so nothing can be told apart. Give the object's mask."
        )
    ranks = stats.rankdata(saliency)[mask.ravel()]
    return float((ranks.sum() - inside * (inside + 1) / 2) / (inside * outside))


def on_grid(saliency: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) enlarged bilinearly to (height, width), cell centres on cell centres."""
    rows, columns = (
        (np.arange(large) + 0.5) * small / large - 0.5
        for small, large in zip(saliency.shape, (height, width), strict=True)
    )
    return ndimage.map_coordinates(saliency, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")


def object_masks(picture: np.ndarray) -> np.ndarray:
    """Masks of the things in a picture (64, 64, 3) of the bundled world, values in [0, 1]: boolean (things, 64, 64)."""
    things = find(picture).things
    return np.array([coverage(thing) >= 0.5 for thing in things]).reshape(len(things), *picture.shape[:2])


def masks_of_things(picture: np.ndarray, scene: Scene) -> np.ndarray | None:
    """Which of the things in a picture of the bundled world is which of a scene's: masks (things, 64, 64) in its order.

    None where the picture has another number of things, or one of them has another colour or shape than it should.
    """
    found = find(picture).things
    pairs = matched(found, scene.things)
    right = all(t is not None and (t.colour, t.shape) == (asked.colour, asked.shape) for t, asked in pairs)
    if len(found) != len(scene.things) or not right:
        return None
    return np.array([coverage(thing) >= 0.5 for thing, _ in pairs if thing is not None])


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map (height, width) that knows nothing of the picture but that things tend to be in the middle."""
    y, x = np.mgrid[:height, :width]
    return -np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
