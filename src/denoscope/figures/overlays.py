"""A map laid over a picture."""

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.colors import Colormap, Normalize
from PIL import Image

from .scales import Limits, colour_limits
from .theme import ALPHA

LUMINANCE = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in the brightness of a colour (ITU-R BT.601)."""


def rgb(picture: np.ndarray) -> np.ndarray:
    """Return (row, column, 1 | 3 | 4) uint8 as (row, column, 3) uint8."""
    picture = np.asarray(picture)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]


def overlay(
    picture: np.ndarray,
    saliency: np.ndarray,
    limits: Limits | None = None,
    cmap: str | Colormap | None = None,
    alpha: float = ALPHA,
) -> np.ndarray:
    """Lay a map over a picture: (row, column, channel) uint8 and (y, x) raw values -> (row, column, 3) uint8.

    The map is resized bilinearly to the picture. Where it is NaN, and everywhere if it is flat, the picture stays.
    """
    picture, saliency = rgb(picture), np.asarray(saliency)
    limits = limits or colour_limits(xr.Dataset({"saliency": (("y", "x"), saliency)}))
    return laid_over(picture, coloured(saliency, picture.shape[:2], limits, cmap), alpha)


class Heat(NamedTuple):
    """A map in colours: (row, column, 3) from 0 to 255, and (row, column, 1) True where it has a value."""

    colours: np.ndarray
    present: np.ndarray


def coloured(
    saliency: np.ndarray, size: tuple[int, int], limits: Limits, cmap: str | Colormap | None = None
) -> Heat | None:
    """Return a map (y, x), resized bilinearly to (rows, columns), in colours; None if nothing is to be shown."""
    if limits.flat:
        return None
    values = resized(saliency, size)
    colours = limits.cmap(cmap)(Normalize(limits.low, limits.high)(np.nan_to_num(values)))[..., :3] * 255
    return Heat(colours, np.isfinite(values)[..., None])


def laid_over(
    picture: np.ndarray, heat: Heat | None, alpha: float = ALPHA, grey_picture: np.ndarray | None = None
) -> np.ndarray:
    """Lay a coloured map over a picture (row, column, 3) uint8 of its size; the picture stays where it has no value.

    `grey_picture` is `grey(picture)`, if it is computed already.
    """
    if heat is None:
        return picture.copy()
    mixed = (1 - alpha) * (grey(picture) if grey_picture is None else grey_picture) + alpha * heat.colours
    return np.where(heat.present, mixed.round(), picture).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """Return the luminance (row, column, 1), its contrast lowered around the middle.

    Neither black nor white then drowns the colours above it.
    """
    luminance = picture @ np.array(LUMINANCE)
    return np.asarray((128 + 0.7 * (luminance - 128))[..., None])


def resized(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map (y, x) bilinearly, missing values left out; NaN where the nearest cell is NaN."""
    finite = np.isfinite(saliency)
    values = _resize(np.where(finite, saliency, 0), size, Image.Resampling.BILINEAR)
    weights = _resize(finite, size, Image.Resampling.BILINEAR)
    present = _resize(finite, size, Image.Resampling.NEAREST) > 0
    return np.where(present, values / np.where(weights > 0, weights, 1), np.nan)


def _resize(values: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize (y, x) values to (rows, columns) with Pillow."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size[::-1], resampling), dtype=np.float64)


def grown(picture: np.ndarray, side: int = 256) -> np.ndarray:
    """Repeat pixels by the whole factor that makes the longer side at least `side`; pixels stay square.

    >>> grown(np.zeros((64, 48, 3), np.uint8)).shape
    (256, 192, 3)
    """
    factor = max(1, math.ceil(side / max(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Return RGB whose longer side is at most `side` pixels; smaller pictures stay exact.

    >>> shrunk(np.zeros((512, 1024, 3), np.uint8), 256).shape
    (128, 256, 3)
    """
    image = Image.fromarray(rgb(picture))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)
