"""A clip whose right look is known: a red square that moves to the right, with a map that moves with it."""

import numpy as np
import xarray as xr

from denoscope.figures.clips import map_frame

SIDE, CELLS, SQUARE, TOP, WAY = 48, 12, 12, 16, 4
"""Pixels of a frame, cells of a map, pixels of the square, its upper edge, and its way from frame to frame."""
FRAMES, MAP_FRAMES, STEPS = 9, 3, 4
"""A causal autoencoder that joins four frames: 9 = 1 + 4 · (3 − 1)."""


def clip_trace(frames: int = FRAMES, steps: int = STEPS) -> xr.Dataset:
    """Noise that fades into the moving square on white, (step, frame, row, column, channel)."""
    clip = np.full((frames, SIDE, SIDE, 3), 255, np.uint8)
    for frame in range(frames):
        clip[frame, TOP : TOP + SQUARE, left(frame) : left(frame) + SQUARE] = (220, 30, 30)
    noise = np.random.default_rng(0).uniform(0, 255, clip.shape)
    kept = np.linspace(0, 1, steps)[:, None, None, None, None]
    places = ("step", "frame", "row", "column", "channel")
    return xr.Dataset(
        {
            "image": (places[1:], clip),
            "sample": (places, (kept * clip + (1 - kept) * noise).astype(np.uint8)),
            "pred_original_sample": (places, (255 - (0.4 + 0.6 * kept) * (255 - clip.astype(float))).astype(np.uint8)),
        },
        coords={
            "step": np.arange(steps),
            "timestep": ("step", np.linspace(999, 0, steps).astype(int)),
            "log_snr": ("step", np.linspace(-9.0, 6.0, steps)),
            "frame": np.arange(frames),
        },
    )


def left(frame: int) -> int:
    """The left edge of the square in a frame, in pixels."""
    return WAY * frame


def clip_method(
    steps: tuple[int, ...] = (1, 3), map_frames: int = MAP_FRAMES, frames: int = FRAMES, **attrs: object
) -> xr.Dataset:
    """1 + step where the square is in the middle of the frames that a sample frame stands for, more in each frame."""
    saliency = np.zeros((len(steps), map_frames, CELLS, CELLS))
    cell = SIDE // CELLS
    for frame in range(map_frames):
        joined = [i for i in range(frames) if map_frame(i, map_frames, frames) == frame]
        column = left(joined[len(joined) // 2]) // cell
        for i, step in enumerate(steps):
            saliency[i, frame, TOP // cell : (TOP + SQUARE) // cell, column : column + SQUARE // cell] = (1 + step) * (
                1 + frame
            )
    centres = (np.arange(CELLS) + 0.5) * cell
    return xr.Dataset(
        {
            "saliency": (("step", "frame", "y", "x"), saliency),
            "standard_error": (("step", "frame", "y", "x"), 0.1 + 0.1 * saliency),
            "reliability": ("step", np.linspace(0.9, 0.95, len(steps))),
        },
        coords={
            "step": list(steps),
            "timestep": ("step", [999 - 333 * step for step in steps]),
            "log_snr": ("step", [5.0 * step - 9.0 for step in steps]),
            "frame": np.arange(map_frames),
            "y": centres,
            "x": centres,
        },
        attrs={"title": "A square", "reading": "High on the square.", "num_masks": 500, **attrs},
    )


def clip_words(**attrs: object) -> xr.Dataset:
    """Maps of two words: the square, and nothing but a corner of the last sample frame, (step, token, frame, y, x)."""
    square = clip_method()["saliency"]
    corner = xr.zeros_like(square)
    corner[:, -1, :2, :2] = 9.0
    saliency = xr.concat([square, corner], xr.Variable("token", ["square", "corner"]))
    saliency = saliency.transpose("step", "token", "frame", "y", "x")
    return xr.Dataset({"saliency": saliency}, attrs={"title": "Words", **attrs})
