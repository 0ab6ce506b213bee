"""The pictures that a pipeline returned, in whichever form: pictures, clips, NumPy arrays, tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

PICTURE_FIELDS = ("images", "frames", "videos", "image", "video", "prediction")
"""Names that results of diffusers have for pictures and clips."""


@dataclass(frozen=True)
class Images:
    """Pictures or clips in the place of a pipeline's own result."""

    images: Any


def finished(result: Any) -> Any:
    """Return the pictures or clips of a pipeline's result; None if it has none."""
    if isinstance(result, tuple):
        return result[0] if result else None
    return next((getattr(result, name) for name in PICTURE_FIELDS if getattr(result, name, None) is not None), None)


def pictures_in(result: Any) -> int | None:
    """Return the number of pictures or clips in a result; None if it has none."""
    pictures = finished(result)
    if isinstance(pictures, (torch.Tensor, np.ndarray)):
        return len(pictures) if pictures.ndim > 2 else None
    return len(pictures) if isinstance(pictures, Sequence) and len(pictures) else None


def as_tensor(pictures: Any) -> torch.Tensor | None:
    """Return pictures as (n, channels, height, width), and clips as (n, channels, frames, height, width).

    Pictures and arrays of whole numbers are brought to [0, 1]. None for anything else.
    """
    if isinstance(pictures, Image.Image):
        pictures = [pictures]
    if isinstance(pictures, (list, tuple)) and len(pictures):
        parts = [_one(picture) for picture in pictures]
        shapes = {None if part is None else part.shape for part in parts}
        return (
            torch.stack([part for part in parts if part is not None])
            if len(shapes) == 1 and None not in shapes
            else None
        )
    if isinstance(pictures, np.ndarray):
        return _channels_first(torch.from_numpy(np.ascontiguousarray(pictures)))
    if isinstance(pictures, torch.Tensor):
        return _tensor(pictures)
    return None


def _one(picture: Any) -> torch.Tensor | None:
    """Return one picture (channels, height, width), or one clip (channels, frames, height, width)."""
    if isinstance(picture, Image.Image):
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        return torch.from_numpy(np.array(picture.convert(mode))).movedim(-1, 0).float() / 255
    if isinstance(picture, (list, tuple)):
        frames = [_one(frame) for frame in picture]
        return None if not frames or any(frame is None for frame in frames) else torch.stack(frames, dim=1)  # type: ignore[arg-type]
    whole = as_tensor(picture[None]) if isinstance(picture, (np.ndarray, torch.Tensor)) else None
    return None if whole is None else whole[0]


def _channels_first(values: torch.Tensor) -> torch.Tensor | None:
    """Return arrays (n, height, width[, channels]) or (n, frames, height, width, channels) with channels second."""
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim not in (4, 5) or values.shape[-1] not in (1, 3, 4):
        return None
    return values.movedim(-1, 1)


def _tensor(values: torch.Tensor) -> torch.Tensor | None:
    """Return tensors (n, channels, height, width), or (n, frames, channels, height, width), with channels second."""
    if values.ndim == 5 and values.shape[2] in (1, 3, 4):
        return values.movedim(2, 1)
    return values if values.ndim == 4 and values.shape[1] in (1, 3, 4) else None
