"""The finished clip of a run as files that play: a GIF, and an MP4 where an encoder is installed."""

import importlib
import io
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from .clips import frames_of
from .overlays import grown, rgb, shrunk
from .theme import FRAME_SIDE

FRAMES_PER_SECOND = 8.0
"""The speed of a clip whose pictures do not say it by their attribute `frames_per_second`."""


def clip_gif(pictures: xr.Dataset) -> bytes:
    """Return the finished clip as a looping GIF, its longer side from 256 to 512 pixels."""
    frames = [Image.fromarray(shrunk(frame, FRAME_SIDE)) for frame in _frames(pictures)]
    reduced = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    encoded = io.BytesIO()
    milliseconds = round(1000 / speed(pictures))
    reduced[0].save(encoded, "GIF", save_all=True, append_images=reduced[1:], duration=milliseconds, loop=0)
    return encoded.getvalue()


def clip_mp4(pictures: xr.Dataset) -> bytes | None:
    """Return the finished clip as an MP4; None if `imageio-ffmpeg` is not installed or its encoder does not run."""
    try:
        writer = importlib.import_module("imageio_ffmpeg")
    except ImportError:
        return None
    frames = [_with_even_sides(frame) for frame in _frames(pictures)]
    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        try:
            stream = writer.write_frames(str(path), (width, height), fps=speed(pictures), macro_block_size=2)
            stream.send(None)
            for frame in frames:
                stream.send(np.ascontiguousarray(frame))
            stream.close()
            return path.read_bytes()
        except (OSError, RuntimeError):  # no program ffmpeg, or one without this encoder
            return None


def speed(pictures: xr.Dataset) -> float:
    """Return the frames per second of a clip."""
    return float(pictures.attrs.get("frames_per_second") or FRAMES_PER_SECOND)


def _frames(pictures: xr.Dataset) -> list[np.ndarray]:
    """Return every frame of the finished clip, (row, column, 3) uint8, enlarged to 256 pixels by whole factors."""
    image = pictures["image"].transpose("frame", ...).values
    return [grown(rgb(image[frame])) for frame in range(frames_of(pictures))]


def _with_even_sides(frame: np.ndarray) -> np.ndarray:
    """Return a frame with a last row and column repeated where a side is odd: video has two pixels to a colour."""
    rows, columns = frame.shape[0] % 2, frame.shape[1] % 2
    return np.pad(frame, ((0, rows), (0, columns), (0, 0)), mode="edge")
