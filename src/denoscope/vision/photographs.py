"""A photograph from a file, a PIL image or an array, as an upright RGB picture in sRGB."""

import difflib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError, one_line, shown_value
from .profiles import Profile, ProfileError

SHORT_SIDE = 1024
"""The smallest short side, in pixels, that a large JPEG is decoded to."""

Photograph = str | os.PathLike[str] | Image.Image | np.ndarray
"""A picture: a path, a PIL image or an array."""


class AnimatedPhotographWarning(UserWarning):
    """A file holds several pictures, of which one is used."""


class DarkPhotographWarning(UserWarning):
    """A picture of 16 or 32 bits has no value above 255, so it is almost black: perhaps it holds values of 8 bits."""


class ColourProfileWarning(UserWarning):
    """A picture's colour profile cannot be used, so its colours are read as sRGB."""


def load_photograph(source: Photograph) -> Image.Image:
    """Read a photograph as an upright RGB picture, its colours in sRGB.

    >>> load_photograph(np.full((2, 3), 65535, np.uint16)).getpixel((0, 0))
    (255, 255, 255)

    `source` is a path, a PIL image of any mode (it is not changed), or an array (h, w) or (h, w, 1 | 3 | 4) of uint8,
    uint16, bool, or floats in [0, 1]. EXIF orientation and an ICC profile are applied, transparent parts are laid on
    white, and 16 bits become 8. A JPEG may be decoded reduced, its short side 1024 pixels or more.

    Of several pictures in a file the first is used, of a PIL image the current one, with an
    `AnimatedPhotographWarning`. A `DarkPhotographWarning` says that 16 or 32 bits hold no value above 255, and a
    `ColourProfileWarning` that a profile cannot be used. Raises `InputError` for a source that is not a picture, is
    broken, or has more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    name = _name(source)
    cautions: list[Warning] = []
    with _readable(name), _opened(source) as image:
        _refuse_size(image, name)
        if _is_dark(source if isinstance(source, np.ndarray) else image):
            cautions.append(_dark(name))
        try:
            profile = Profile.of(image)
        except ProfileError as error:
            profile = None
            cautions.append(_without_profile(name, str(error)))
        photograph = _rgb(ImageOps.exif_transpose(image), profile)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's MPO: previews, depth, gain map
            cautions.append(_animated(image, name))
    for caution in cautions:
        warnings.warn(caution, stacklevel=2)
    return photograph


def _animated(image: Image.Image, name: str) -> Warning:
    which = f"number {image.tell()}, counted from 0," if image.tell() else "the first"
    return AnimatedPhotographWarning(f"{name} holds several pictures ({image.format}); only {which} is used.")


def _dark(name: str) -> Warning:
    return DarkPhotographWarning(
        f"{name} is almost black: it is read as 16 bits, 0 to 65535, and has no value above 255. If it holds values of "
        "8 bits, save it as 8 bits, or give array.astype(np.uint8)."
    )


def _without_profile(name: str, reason: str) -> Warning:
    return ColourProfileWarning(
        f"The colour profile of {name[0].lower()}{name[1:]} cannot be used: {reason}. Its colours are read as sRGB; "
        "convert it to sRGB first if they matter."
    )


def _name(source: Any) -> str:
    if isinstance(source, Image.Image):
        return f"The picture ({source.width} × {source.height}, mode {source.mode})"
    if isinstance(source, np.ndarray):
        return f"The array of shape {source.shape} and dtype {source.dtype}"
    if isinstance(source, (str, os.PathLike)):
        return f'The file "{one_line(os.fspath(source), 300)}"'
    raise InputError(
        f"{shown_value(source)} ({type(source).__name__}) is not a photograph. Give the path of a picture, a PIL "
        "image, or a NumPy array (h, w), (h, w, 3) or (h, w, 4)."
    )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Raise every exception of Pillow and its decoders as an `InputError` of one paragraph."""
    try:
        yield
    except (InputError, Warning):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(name, str(error).partition(",")[0])) from error
    except Exception as error:
        reason = one_line(error, 200).rstrip(".") or type(error).__name__
        raise InputError(
            f"{name} cannot be read as a photograph: {reason}. Give a complete picture in a format that Pillow reads, "
            "such as JPEG, PNG, TIFF, WebP or GIF; convert others (HEIC, SVG, camera raw) first."
        ) from error


@contextmanager
def _opened(source: Photograph) -> Iterator[Image.Image]:
    """Open the source as a PIL image; close a file again, and have a large JPEG decoded reduced."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _of_array(source)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_refuse_size` refuses instead
            image = Image.open(_existing(source))
        with image:
            image.draft(None, (SHORT_SIDE, SHORT_SIDE))
            yield image


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise InputError(f"{_name(source)} is not a file but {_kind(path)}. Give the path of one picture.")
    near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
    hint = f'Did you mean "{one_line(near[0], 100)}"? ' if near else ""
    raise InputError(f"{_name(source)} does not exist. {hint}Give the path of a picture, such as photos/cat.jpg.")


def _kind(path: Path) -> str:
    if path == Path():
        return "the folder you are in"
    return "a folder" if path.is_dir() else "a device or a pipe"


def _refuse_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name} has no pixels: it is {width} × {height}. Give a picture of at least 1 × 1.")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise InputError(
            _too_large(name, f"{width} × {height} is {width * height} pixels, and at most {most} are read")
        )


def _too_large(name: str, numbers: str) -> str:
    return (
        f"{name} is too large: {numbers}. Shrink it first, for example to {SHORT_SIDE} pixels on its short side; "
        "a classifier sees a few hundred."
    )


def _rgb(image: Image.Image, profile: Profile | None) -> Image.Image:
    if image.mode[0] in "IF":  # 16 and 32 bits, and floating point
        image = _of_array(_deep(image))
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return _in_srgb(image, profile)
    page, ink = Image.new("RGB", image.size, "white"), image.convert("RGBA")
    page.paste(_in_srgb(ink.convert("RGB"), profile), mask=ink)
    return page


def _in_srgb(image: Image.Image, profile: Profile | None) -> Image.Image:
    photograph = image.convert("RGB") if profile is None else profile.to_srgb(image)
    photograph.info.pop("icc_profile", None)  # it is applied, and must not be applied again
    return photograph


def _is_dark(picture: Image.Image | np.ndarray) -> bool:
    """Return True if the largest value of 16 or 32 bits is below 256, but not 0."""
    if isinstance(picture, Image.Image):
        if picture.mode[0] != "I":
            return False
        values = np.asarray(picture)
        transparent = picture.info.get("transparency")
        values = values[values != transparent] if isinstance(transparent, int) else values
    else:
        values = picture
    deep = values.dtype.kind in "iu" and values.dtype.itemsize > 1
    return bool(deep and values.size and 0 < values.max() < 256)


def _deep(image: Image.Image) -> np.ndarray:
    """Return the values of a picture of 16 bits (Pillow keeps some as 32) or floats; transparent ones are white."""
    values = np.array(image)
    if image.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"The picture of mode {image.mode} has values from {values.min()} to {values.max()}. Values of 16 bits "
            "are read, 0 to 65535. Scale them to that range, or to 8 bits, first."
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    return values.astype(np.uint16)


def _of_array(array: np.ndarray) -> Image.Image:
    """Return a PIL image of mode L, RGB or RGBA."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise InputError(
            f"{_name(array)} is not a photograph. Its shape must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), with "
            "at least one pixel and the channels last: np.moveaxis(array, 0, -1) puts them there."
        )
    pixels = _eight_bits(array)
    if array.shape[2:] == (1,):
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    match array.dtype.kind, array.dtype.itemsize:
        case "b", _:
            return array * np.uint8(255)
        case "u", 1:
            return array
        case "u", 2:
            return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255 × 257
        case "f", _:
            return _eight_bits_of_floats(array)
    raise InputError(
        f"{_name(array)} is not a photograph: its dtype must be uint8, uint16, bool, or float with values in [0, 1]. "
        "Whole numbers from 0 to 255: array.astype(np.uint8)."
    )


def _eight_bits_of_floats(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()  # NaN if there is one
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"{_name(array)} has values from {low:g} to {high:g}. Floats must be in [0, 1], without NaN: divide those "
            "up to 255 by 255, and replace NaN by a colour."
        )
    precision = np.promote_types(array.dtype, np.float32)
    pixels: np.ndarray = np.rint(np.multiply(array, 255, dtype=precision)).astype(np.uint8)
    return pixels
