"""The frames of a clip as a page carries them: pictures as small WebP, maps once for all frames that they belong to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..figures.clips import chosen_frame, frames_of, is_clip, map_frame, still
from ..figures.results import Explained, clean_pictures
from .maps import PageResult, carried_frames, shown_frames
from .page import EXACT_SIDE, NOISE_QUALITY, picture_uri

PICTURE_SIDE, PICTURES = 256, 300
"""Pixels of a frame's longer side, for up to so many frames of all steps; more frames are smaller."""
QUALITY = 80


def frame_control(pictures: xr.Dataset, results: Sequence[PageResult], maps: Mapping[str, xr.Dataset]) -> Any:
    """Return the facts of the frame control for the template; None for a run of a picture.

    `maps` are the results by method as they are, with all their frames.
    """
    if not is_clip(pictures):
        return None
    shown = shown_frames(pictures)
    blocks = {each.block: f"{each.data.sizes['y']} × {each.data.sizes['x']}" for each in results if each.block > 1}
    return {
        "number": frames_of(pictures),
        "shown": shown,
        "map_frames": sorted({frames_of(result) for result in maps.values() if is_clip(result)}),
        "blocks": sorted(blocks.items()),
    }


def frames_payload(explanation: Explained, step: int) -> dict[str, Any]:
    """Return the part of the script's data that is about frames; nothing for a run of a picture.

    `maps` has for each method the place of the carried map that belongs to each shown frame. `start` is the place of
    the shown frame to open on, the nearest to the largest map mass of the step.
    """
    pictures, results = explanation.pictures, explanation.methods()
    if not is_clip(pictures):
        return {}
    number, shown = frames_of(pictures), shown_frames(pictures)
    at_step = [result.sel(step=[step]) for result in results.values() if step in result["step"].values]
    start = chosen_frame(number, at_step[:1]).index
    places = {}
    for name, result in results.items():
        carried = carried_frames(result, pictures)
        places[name] = [carried.index(map_frame(frame, frames_of(result), number)) for frame in shown]
    clip = {
        "frames": shown,
        "number": number,
        "start": min(range(len(shown)), key=lambda i: abs(shown[i] - start)),
        "pictures": [picture_uri(still(pictures, frame)["image"].values, EXACT_SIDE, QUALITY) for frame in shown],
        "maps": places,
    }
    return {"clip": clip}


def step_frames(at_step: xr.Dataset, number: int) -> dict[str, list[str]]:
    """Return the shown frames of one of `number` steps: the sample's, and the clean prediction's.

    They are exact if they are few and at most half of EXACT_SIDE, else WebP.
    """
    shown = shown_frames(at_step)
    pictures, clean = number * len(shown), clean_pictures(at_step)
    side = int(PICTURE_SIDE * min(1.0, math.sqrt(PICTURES / pictures)))
    exact = pictures <= PICTURES and max(clean.sizes["row"], clean.sizes["column"]) <= EXACT_SIDE // 2
    return {
        "samples": _uris(at_step["sample"], shown, side, None if exact else NOISE_QUALITY),
        "cleans": _uris(clean, shown, side, None if exact else QUALITY),
    }


def _uris(clip: xr.DataArray, shown: Sequence[int], side: int, quality: int | None) -> list[str]:
    """Return frames of a clip as data URIs."""
    frames: Sequence[np.ndarray] = [clip.isel(frame=frame).values for frame in shown]
    return [picture_uri(frame, side, quality) for frame in frames]
