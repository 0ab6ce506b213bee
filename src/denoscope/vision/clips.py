"""Clips beside pictures: tensors (n, channels, frames, height, width) for functions that know pictures alone."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import adaptive_avg_pool2d

from ..recording.layout import picture_frames


def is_clip(pictures: torch.Tensor) -> bool:
    """Return True for clips (n, channels, frames, height, width), False for pictures (n, channels, height, width)."""
    return pictures.ndim == 5


def by_frame(function: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor) -> torch.Tensor:
    """Return a function's values of pictures, (n, ...), or of each frame of clips, (n, frames, ...).

    >>> by_frame(lambda pictures: pictures.mean(dim=(2, 3)), torch.zeros(2, 3, 5, 8, 8)).shape
    torch.Size([2, 5, 3])
    """
    if not is_clip(pictures):
        return function(pictures)
    frames = pictures.movedim(2, 1)
    values = function(frames.flatten(0, 1))
    return values.reshape(*frames.shape[:2], *values.shape[1:])


def middle_frame(pictures: torch.Tensor) -> torch.Tensor:
    """Return the middle frame of clips, or pictures as they are: (n, channels, height, width)."""
    return pictures[:, :, pictures.shape[2] // 2] if is_clip(pictures) else pictures


def averaged_to(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return maps of pictures (n, [frames,] height, width) as means over the cells of a smaller shape.

    `shape` is (h, w) or (frames, h, w). A frame of it has the mean of the pictures that it was decoded to.
    """
    if tuple(values.shape[1:]) == tuple(shape):
        return values
    small = values if values.shape[-2:] == tuple(shape[-2:]) else adaptive_avg_pool2d(values, (shape[-2], shape[-1]))
    if len(shape) == 2 or shape[0] == values.shape[1]:
        return small
    parts = [picture_frames(slice(i, i + 1), shape[0], values.shape[1]) for i in range(shape[0])]
    return torch.stack([small[:, part].mean(dim=1) for part in parts], dim=1)
