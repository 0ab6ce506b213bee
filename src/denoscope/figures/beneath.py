"""The picture beneath a map: of a trace, of frames, of an explanation, or a plain one.

Nothing of a trace's or frame's class is imported: a trace has `image`, frames have `clean`, tensors become arrays by
their own methods.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr
from PIL import Image

from ..errors import InputError, did_you_mean, shown_value
from .overlays import rgb
from .results import clean_pictures, is_noised

Beneath = Literal["final", "step"]
CHOICES: tuple[Beneath, ...] = ("final", "step")


def unit_word(source: Any) -> str:
    """Return "frame" for frames of a noised photograph, else "step"."""
    source = getattr(source, "pictures", source) if _is_explanation(source) else source
    if isinstance(source, xr.Dataset):
        return "frame" if is_noised(source) else "step"
    return "frame" if _is_frames(source) else "step"


def picture_beneath(source: Any, step: int, beneath: Beneath | None = None) -> np.ndarray:
    """Return the picture (row, column, 3) uint8 beneath the map of a step; see `denoscope.plot`.

    Raises `InputError` for a source that holds no picture, or none of that step.
    """
    if beneath is not None and beneath not in CHOICES:
        raise InputError(f"The picture beneath is {shown_value(beneath)}. {did_you_mean(str(beneath), CHOICES)}")
    source = source.pictures if _is_explanation(source) else source
    chosen = beneath or ("step" if unit_word(source) == "frame" else "final")
    if isinstance(source, xr.Dataset):
        return rgb((clean_pictures(source).sel(step=step) if chosen == "step" else source["image"]).values)
    if _is_frames(source):
        return _frame(source, step, chosen)
    if hasattr(source, "image") and hasattr(source, "clean_decoded"):
        return rounded_to_eight_bits(source.clean_decoded()[step] if chosen == "step" else source.image)
    if beneath == "step":
        raise InputError("A plain picture is the same at every step. Give the trace, or leave beneath out.")
    return rounded_to_eight_bits(source)


def _is_explanation(source: Any) -> bool:
    """Return True for an object that has results by method and a dataset of pictures."""
    return callable(getattr(source, "methods", None)) and isinstance(getattr(source, "pictures", None), xr.Dataset)


def _is_frames(source: Any) -> bool:
    """Return True for a sequence of frames with the clean picture that they show."""
    return hasattr(source, "clean") and hasattr(source, "space") and hasattr(source, "__getitem__")


def _frame(frames: Any, step: int, chosen: Beneath) -> np.ndarray:
    """Return the first draw of a frame, or the clean picture.

    The units of a classifier's inputs are the classifier's own: the clean picture's range is drawn from black to white.
    """
    clean = _channels_last(frames.clean)
    pixels = _channels_last(frames[step].images[0]) if chosen == "step" else clean
    low, high = (float(clean.min()), float(clean.max())) if frames.space == "input" else (0.0, 1.0)
    return rounded_to_eight_bits(np.clip((pixels - low) / ((high - low) or 1.0), 0.0, 1.0))


def _channels_last(tensor: Any) -> np.ndarray:
    """Return a tensor (channel, row, column) as an array (row, column, channel)."""
    return np.moveaxis(np.asarray(tensor.detach().float().cpu()), 0, -1)


def rounded_to_eight_bits(picture: Any) -> np.ndarray:
    """Return a PIL image or an array, uint8 or from 0 to 1, as (row, column, 3) uint8."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or pixels.dtype.kind not in "uf":
        raise InputError(
            f"A {type(picture).__name__} of shape {pixels.shape} and dtype {pixels.dtype} is not a picture. Give a "
            "trace, frames, an explanation, a PIL image, or an array (row, column, 3): uint8, or floats from 0 to 1."
        )
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError("The picture has floats outside 0 to 1. Give floats from 0 to 1, or uint8.")
        pixels = (pixels * 255).round()
    return rgb(pixels.astype(np.uint8))
