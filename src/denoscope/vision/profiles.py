"""ICC profiles: from a picture's own colour space to sRGB."""

import io
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from PIL import Image

from ..errors import one_line

PIXELS = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the pixels of a profile, by the profile's colour space."""
GREY = ("1", "L", "LA", "La", "I", "F")
"""The modes of grey pictures; those of 16 bits begin with I."""
SAME_COLOUR = 1
"""The largest difference, in levels of 8 bits, between sRGB and a profile that is sRGB itself."""


class ProfileError(ValueError):
    """A profile that cannot be used; the message is the reason."""


@final
@dataclass(frozen=True, eq=False)
class Profile:
    """The conversion of pixels in a `mode` to sRGB; `transform` is None if they are sRGB."""

    mode: str
    transform: Any

    @classmethod
    def of(cls, image: Image.Image) -> "Profile | None":
        """Return the conversion of a picture, None without a profile; raises `ProfileError` for an unusable profile."""
        content = image.info.get("icc_profile")
        if not content:
            return None
        try:
            from PIL import ImageCms

            source = ImageCms.ImageCmsProfile(io.BytesIO(content))
            mode = _mode(source.profile.xcolor_space.strip(), image)
            target = ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(source, target, mode, "RGB")
        except ProfileError:
            raise
        except Exception as error:  # Little CMS is an optional part of Pillow, and has errors of several types
            raise ProfileError(one_line(error, 200).rstrip(".") or type(error).__name__) from error
        return cls(mode, None if _changes_nothing(transform, mode) else transform)

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return a picture without transparency in RGB, its colours as sRGB has them."""
        if self.transform is None:
            return image.convert("RGB")
        converted: Image.Image = self.transform.apply(image.convert(self.mode))
        return converted


def _mode(space: str, image: Image.Image) -> str:
    """Return the mode of the pixels that a profile of a colour space is for."""
    grey = image.mode in GREY or image.mode.startswith("I;")
    fits = {"RGB": image.mode not in ("CMYK", "LAB"), "GRAY": grey, "CMYK": image.mode == "CMYK"}
    if not fits.get(space, False):
        raise ProfileError(f"it is a profile of {space or 'unknown'} colours, and the picture has mode {image.mode}")
    return PIXELS[space]


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Return True if a conversion leaves a lattice of colours as they are, but for rounding."""
    if mode == "CMYK":
        return False
    lattice = _lattice(mode)
    converted = np.asarray(transform.apply(lattice)).astype(int)
    return bool(np.abs(converted - np.asarray(lattice.convert("RGB"))).max() <= SAME_COLOUR)


def _lattice(mode: str) -> Image.Image:
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    axis = np.linspace(0, 255, 18).astype(np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    return Image.fromarray(colours.reshape(18, 18 * 18, 3))
