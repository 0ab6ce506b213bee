"""The picture beneath a map: of a trace, of frames, of an explanation, or a plain one.

Nothing of a trace's or frame's class is imported: a trace has `image`, frames have `clean`, tensors become arrays by
their own methods.
"""

from typing import Any, Literal

import numpy as np
import xarray as xr
from PIL import Image

from ..errors import InputError, did_you_mean, shown_value
from .clips import FRAME, is_clip, middle, still
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


def frames_beneath(source: Any) -> int | None:
    """Return the number of frames of the clip that a source holds; None for a picture, or a sequence of pictures."""
    source = source.pictures if _is_explanation(source) else source
    if isinstance(source, xr.Dataset):
        return int(source.sizes[FRAME]) if is_clip(source) else None
    if _is_frames(source):
        return None
    return _frames_in(source.image if hasattr(source, "clean_decoded") else source)


def picture_beneath(source: Any, step: int, beneath: Beneath | None = None, frame: int | None = None) -> np.ndarray:
    """Return the picture (row, column, 3) uint8 beneath the map of a step; see `denoscope.plot`.

    Of a clip it is one frame, by default the middle one. Raises `InputError` for a source that holds no picture, or
    none of that step.
    """
    if beneath is not None and beneath not in CHOICES:
        raise InputError(f"The picture beneath is {shown_value(beneath)}. {did_you_mean(str(beneath), CHOICES)}")
    source = source.pictures if _is_explanation(source) else source
    chosen = beneath or ("step" if unit_word(source) == "frame" else "final")
    if isinstance(source, xr.Dataset):
        pictures = still(source, frame)
        return rgb((clean_pictures(pictures).sel(step=step) if chosen == "step" else pictures["image"]).values)
    if _is_frames(source):
        return _frame(source, step, chosen)
    if hasattr(source, "image") and hasattr(source, "clean_decoded"):
        return rounded_to_eight_bits(
            _one_frame(source.clean_decoded()[step] if chosen == "step" else source.image, frame)
        )
    if beneath == "step":
        raise InputError("A plain picture is the same at every step. Give the trace, or leave beneath out.")
    return rounded_to_eight_bits(_one_frame(source, frame))


def _frames_in(picture: Any) -> int | None:
    """Return the number of frames of a list of pictures, or of an array (frame, row, column, channel), else None."""
    if isinstance(picture, (list, tuple)):
        return len(picture) if all(_is_plain_picture(each) for each in picture) else None
    return picture.shape[0] if getattr(picture, "ndim", 0) == 4 else None


def _is_plain_picture(frame: Any) -> bool:
    """Return True for a PIL image or an array (row, column, channel)."""
    return isinstance(frame, Image.Image) or getattr(frame, "ndim", 0) == 3


def _one_frame(picture: Any, frame: int | None) -> Any:
    """Return one frame of a clip, by default the middle one; a picture as it is."""
    frames = _frames_in(picture)
    return picture if not frames else picture[middle(frames) if frame is None else frame]


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
    """Return a PIL image, array or tensor, uint8 or from 0 to 1, as (row, column, 3) uint8.

    A tensor may have its channels first.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"))
    channels_first = hasattr(picture, "detach") and picture.ndim == 3 and picture.shape[-1] not in (1, 3, 4)
    pixels = _channels_last(picture) if channels_first else np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or pixels.dtype.kind not in "uf":
        raise InputError(
            f"A {type(picture).__name__} of shape {pixels.shape} and dtype {pixels.dtype} is not a picture. Give a "
            "trace, frames, an explanation, a PIL image, or an array (row, column, 3): uint8, or floats from 0 to 1. "
            "A clip is a list of pictures, or an array (frame, row, column, 3)."
        )
    if pixels.dtype.kind == "f":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError("The picture has floats outside 0 to 1. Give floats from 0 to 1, or uint8.")
        pixels = (pixels * 255).round()
    return rgb(pixels.astype(np.uint8))
