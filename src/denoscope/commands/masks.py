"""The mask of an object, read from a picture file.

A file of labels is read by value, and any other file by brightness:

- coloured palette (PNG, GIF): index 0 is outside, every other index inside;
- few values with 0 among them (0 and 1, or class numbers): 0 is outside, every other value inside;
- few colours: black is outside, every other colour inside;
- anything else, such as black and white with soft edges: inside where brighter than half;
- 255 beside class numbers below 64 is a void border: it counts as outside, and a warning says so; beside larger
  numbers the file is read by brightness;
- transparent is outside."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..vision.photographs import load_photograph

FEW = 32
"""The most different values or colours that a file of labels has."""
HALF = 128
VOID = 255
LARGEST_BESIDE_VOID = 64
"""From this class number on, 255 in the same file is brightness and not a void border."""


class VoidBorderWarning(UserWarning):
    """A mask file has a void border, which counts as outside."""


def read_mask_file(file: str | Path) -> np.ndarray:
    """Return True where the object is, (height, width), by the rule of this module.

    Raises `InputError` for a file that is no picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mask may be dark, and has no colours
        load_photograph(file)  # its messages say why a file is no picture
    with Image.open(Path(file).expanduser()) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode == "P" and not _is_grey(image):
        inside = _of_labels(np.asarray(image), file)
    elif _is_grey(image):
        inside = _of_greys(_greys(image), file)
    else:
        inside = _of_colours(np.asarray(image.convert("RGB")))
    return np.asarray(inside & _opaque(image))


def _of_greys(values: np.ndarray, file: str | Path) -> np.ndarray:
    """Return True inside, for values from 0 to 255."""
    labels = [value for value in np.unique(values) if value != VOID]
    has_void = bool((values == VOID).any())
    are_few = len(labels) == 1 or (len(labels) <= FEW and min(labels, default=0) == 0)
    if are_few and not (has_void and max(labels, default=0) >= LARGEST_BESIDE_VOID):
        return _of_labels(values, file)
    return np.asarray(values >= HALF)


def _of_labels(labels: np.ndarray, file: str | Path) -> np.ndarray:
    """Return True inside, for class numbers; 255 is the object itself if there is no other number but 0."""
    inside: np.ndarray = labels != 0
    void = labels == VOID
    if void.any() and (inside & ~void).any():
        warnings.warn(
            f'The mask "{file}" has class numbers and a border of 255 ("void"), which counts as outside.',
            VoidBorderWarning,
            stacklevel=3,
        )
        inside &= ~void
    return inside


def _of_colours(colours: np.ndarray) -> np.ndarray:
    """Return True inside, for colours (height, width, 3), 0 to 255."""
    if len(np.unique(colours.reshape(-1, 3), axis=0)) <= FEW:
        return np.asarray(colours.any(axis=-1))
    brightness = np.asarray(Image.fromarray(colours).convert("L"))
    return np.asarray(brightness >= HALF)


def _greys(image: Image.Image) -> np.ndarray:
    """Return the values of a grey picture, 0 to 255; wider values are scaled unless they are small numbers."""
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float64)
        return values if values.max() <= VOID else values * VOID / 65535
    return np.asarray(image.convert("RGB"))[..., 0]


def _is_grey(image: Image.Image) -> bool:
    """Return True if red, green and blue are the same everywhere."""
    if image.mode[0] in "IF":
        return True
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    return bool((red == green).all() and (green == blue).all())


def _opaque(image: Image.Image) -> np.ndarray:
    """Return True where the picture is not transparent."""
    if not image.has_transparency_data:
        return np.ones((image.height, image.width), dtype=bool)
    return np.asarray(image.convert("RGBA"))[..., 3] >= HALF
