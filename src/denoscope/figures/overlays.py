"""A map laid over a picture."""

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from .scales import Limits, colour_limits
from .theme import ALPHA, bare


def rgb(picture: np.ndarray) -> np.ndarray:
    """(row, column, 1 | 3 | 4) uint8 -> (row, column, 3) uint8."""
    picture = np.asarray(picture)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]


def overlay(
    picture: np.ndarray,
    saliency: np.ndarray,
    limits: Limits | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> np.ndarray:
    """A heat map over a picture: (row, column, channel) uint8 and (y, x) raw values -> (row, column, 3) uint8.

    The map is resized bilinearly to the picture. Where it is NaN, and everywhere if it is flat, the picture stays.
    """
    picture, saliency = rgb(picture), np.asarray(saliency)
    limits = limits or colour_limits(xr.Dataset({"saliency": (("y", "x"), saliency)}))
    if limits.flat:
        return picture.copy()
    values = resized(saliency, picture.shape[:2])
    colours = limits.cmap(cmap)(Normalize(limits.low, limits.high)(np.nan_to_num(values)))[..., :3] * 255
    mixed = (1 - alpha) * grey(picture) + alpha * colours
    return np.where(np.isfinite(values)[..., None], mixed.round(), picture).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """Luminance with the contrast lowered around the middle, so that neither black nor white drowns the colours."""
    luminance = picture @ np.array([0.299, 0.587, 0.114])
    return (128 + 0.7 * (luminance - 128))[..., None]


def resized(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with the weights of missing values left out; NaN where the nearest cell is NaN."""
    finite = np.isfinite(saliency)
    values, weights = (
        _resize(part, size, Image.Resampling.BILINEAR) for part in (np.where(finite, saliency, 0), finite)
    )
    there = _resize(finite, size, Image.Resampling.NEAREST) > 0
    return np.where(there, values / np.where(weights > 0, weights, 1), np.nan)


def _resize(values: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size[::-1], resampling), dtype=np.float64)


def plot_overlay(
    picture: np.ndarray,
    saliency: np.ndarray,
    *,
    ax: Axes | None = None,
    limits: Limits | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> Axes:
    """`overlay` on matplotlib axes: the ones given, or new ones with their own figure (`ax.figure`)."""
    ax = ax or Figure(figsize=(3, 3), layout="constrained").subplots()
    bare(ax).imshow(overlay(picture, saliency, limits, cmap, alpha), interpolation="nearest")
    return ax


def enlarged(picture: np.ndarray, side: int = 256) -> np.ndarray:
    """Grown by the whole factor that makes the longer side at least so many pixels; pixels stay square.

    >>> enlarged(np.zeros((64, 48, 3), np.uint8)).shape
    (256, 192, 3)
    """
    factor = max(1, math.ceil(side / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """RGB with the longer side at most so many pixels; smaller pictures stay exact.

    >>> shrunk(np.zeros((512, 1024, 3), np.uint8), 256).shape
    (128, 256, 3)
    """
    image = Image.fromarray(rgb(picture))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)
