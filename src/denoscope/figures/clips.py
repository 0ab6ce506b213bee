"""Clips: the frames of a video, and the frame of a map that belongs to each.

A run of a clip has `frame` among the dims of its pictures (frames of the clip) and of its maps (frames of the sample,
usually fewer). Everything here leaves the pictures and maps of a run without frames as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError, shown_value
from .results import Explained

FRAME = "frame"
STRIP_FRAMES = 5
"""Frames of a clip that a figure shows below one another, at most."""


def map_frame(picture_frame: int, frames_of_map: int, frames_of_clip: int) -> int:
    """Return the frame of a map that belongs to a frame of the clip, both counted from 0.

    A video autoencoder makes r·f frames of f sample frames. A causal one makes 1 + r·(f − 1): the first sample frame is
    the first picture alone. The two numbers of frames tell which; where both fit, r is even. Where neither fits, as in
    a clip that was cut, the map's frames are spread evenly over the clip.

    >>> [map_frame(i, 3, 9) for i in range(9)]  # causal, r = 4
    [0, 1, 1, 1, 1, 2, 2, 2, 2]
    >>> [map_frame(i, 4, 16) for i in range(16)]  # not causal, r = 4
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    >>> [map_frame(i, 4, 4) for i in range(4)], [map_frame(i, 1, 3) for i in range(3)]  # no frames joined; all joined
    ([0, 1, 2, 3], [0, 0, 0])
    """
    even = frames_of_clip % frames_of_map == 0
    causal = frames_of_map > 1 and (frames_of_clip - 1) % (frames_of_map - 1) == 0
    if causal and not (even and frames_of_clip % 2 == 0):
        joined = (frames_of_clip - 1) // (frames_of_map - 1)
        return 0 if picture_frame == 0 else 1 + (picture_frame - 1) // joined
    return picture_frame * frames_of_map // frames_of_clip


def is_clip(dataset: xr.Dataset) -> bool:
    """Return True if pictures or maps have frames of a clip."""
    return FRAME in dataset.dims


def frames_of(dataset: xr.Dataset) -> int:
    """Return the number of frames of pictures or maps; 1 for those of a picture."""
    return int(dataset.sizes.get(FRAME, 1))


def still(pictures: xr.Dataset, frame: int | None = None) -> xr.Dataset:
    """Return the pictures of one frame of the clip, by default the middle one."""
    if not is_clip(pictures):
        return pictures
    return pictures.isel({FRAME: middle(frames_of(pictures)) if frame is None else frame}, drop=True)


def still_maps(result: xr.Dataset, frame: int, frames_of_clip: int) -> xr.Dataset:
    """Return the maps that belong to one frame of the clip; numbers of the whole clip stay."""
    if not is_clip(result):
        return result
    return result.isel({FRAME: map_frame(frame, frames_of(result), frames_of_clip)}, drop=True)


def middle(frames: int) -> int:
    """Return the middle frame, the later of two."""
    return frames // 2


def spread(frames: int, most: int) -> list[int]:
    """Return at most so many frames, evenly spread, the first and the last among them.

    >>> spread(9, 5), spread(3, 5)
    ([0, 2, 4, 6, 8], [0, 1, 2])
    """
    return [int(place + 0.5) for place in np.linspace(0, frames - 1, min(most, frames))]


# One frame that stands for the clip


@dataclass(frozen=True)
class ChosenFrame:
    """A frame of a clip that a figure shows, of how many, and the reason why it was chosen ("" if it was asked for)."""

    index: int
    frames: int
    reason: str = ""

    def __str__(self) -> str:
        text = f"frame {self.index} of 0–{self.frames - 1}"
        return f"{text}, {self.reason}" if self.reason else text


def chosen_frame(frames_of_clip: int, results: Sequence[xr.Dataset], frame: int | None = None) -> ChosenFrame:
    """Return the frame that is asked for, or the frame with the largest map mass; without any mass, the middle one.

    The mass of a frame is the sum of the magnitudes of all its maps. Of several frames of the clip with the same map it
    is the middle one. Raises `InputError` for a frame that the clip does not have.
    """
    if frame is not None:
        return ChosenFrame(checked_frame(frame, frames_of_clip), frames_of_clip)
    masses = sum((_masses(result, frames_of_clip) for result in results if is_clip(result)), np.zeros(frames_of_clip))
    if np.ptp(masses) <= 1e-6 * masses.max(initial=0.0):
        return ChosenFrame(middle(frames_of_clip), frames_of_clip, "the middle one")
    largest = np.flatnonzero(masses == masses.max())
    return ChosenFrame(int(largest[len(largest) // 2]), frames_of_clip, "with the largest map mass")


def middle_frame(frames_of_clip: int, frame: int | None = None) -> ChosenFrame:
    """Return the frame that is asked for, or the middle one. Raises `InputError` as `chosen_frame` does."""
    return chosen_frame(frames_of_clip, [], frame)


def _masses(result: xr.Dataset, frames_of_clip: int) -> np.ndarray:
    """Return the share of a result's mass at each frame of the clip."""
    magnitudes = abs(result["saliency"])
    by_frame = magnitudes.sum([dim for dim in magnitudes.dims if dim != FRAME]).values.astype(float)
    places = [map_frame(frame, len(by_frame), frames_of_clip) for frame in range(frames_of_clip)]
    return np.asarray(by_frame[places] / (by_frame.sum() or 1.0))


def checked_frame(frame: Any, frames_of_clip: int) -> int:
    """Return a frame of a clip; raises `InputError` for one that is not there."""
    if isinstance(frame, (int, np.integer)) and not isinstance(frame, bool) and 0 <= frame < frames_of_clip:
        return int(frame)
    raise InputError(
        f"There is no frame {shown_value(frame)} in this clip. Give a whole number from 0 to {frames_of_clip - 1}."
    )


def strip_frames(chosen: ChosenFrame, most: int = STRIP_FRAMES) -> list[int]:
    """Return at most so many frames, evenly spread over the clip; the chosen frame takes the place of the nearest.

    >>> strip_frames(ChosenFrame(3, 9)), strip_frames(ChosenFrame(8, 9), 3)
    ([0, 3, 4, 6, 8], [0, 4, 8])
    """
    frames = spread(chosen.frames, most)
    nearest = min(range(len(frames)), key=lambda i: abs(frames[i] - chosen.index))
    frames[nearest] = chosen.index
    return frames


# An explanation of one frame


@dataclass(frozen=True, eq=False)
class StillExplanation:
    """An explanation of a clip as that of one of its frames; `run`, likelihood and timing are the clip's."""

    run: dict[str, Any]
    pictures: xr.Dataset
    results: dict[str, xr.Dataset]
    likelihood: xr.DataArray | None = None
    timing: xr.Dataset | None = None

    def methods(self) -> dict[str, xr.Dataset]:
        """Return the maps of the frame by method."""
        return self.results


def still_explanation(explanation: Explained, frame: int | None = None) -> Explained:
    """Return the explanation of one frame of a clip, by default the middle one; that of a picture as it is."""
    if not is_clip(explanation.pictures):
        return explanation
    frames = frames_of(explanation.pictures)
    chosen = middle(frames) if frame is None else frame
    results = {name: still_maps(result, chosen, frames) for name, result in explanation.methods().items()}
    return StillExplanation(
        explanation.run,
        still(explanation.pictures, chosen),
        results,
        explanation.likelihood,
        explanation.timing,
    )
