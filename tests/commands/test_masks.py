"""Mask files: the same object, drawn in every way that people draw masks."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

from denoscope.commands.masks import VoidBorderWarning, read_mask_file
from denoscope.errors import InputError

INSIDE = np.zeros((20, 30), dtype=bool)
INSIDE[5:12, 8:21] = True
BORDER = np.zeros_like(INSIDE)
BORDER[4, 8:21] = True


def palette(colours) -> Image.Image:
    image = Image.new("P", INSIDE.shape[::-1])
    image.putdata([int(value) for value in INSIDE.ravel()])
    image.putpalette(colours)
    return image


def transparent() -> Image.Image:
    values = np.full((*INSIDE.shape, 4), 90, np.uint8)
    values[..., 3] = 255 * INSIDE
    return Image.fromarray(values)


GREYS = INSIDE.astype(np.uint8)
DRAWN = {
    "0 and 1": Image.fromarray(GREYS),
    "0 and 255": Image.fromarray(255 * GREYS),
    "a class number": Image.fromarray(15 * GREYS),
    "two class numbers": Image.fromarray(GREYS * np.where(np.arange(30) < 12, 3, 7).astype(np.uint8)),
    "dark red palette": palette([0, 0, 0, 128, 0, 0]),
    "red on white palette": palette([255, 255, 255, 255, 0, 0]),
    "black and white palette": palette([0, 0, 0, 255, 255, 255]),
    "one bit": Image.fromarray(INSIDE),
    "blue on black": Image.fromarray(np.stack([0 * GREYS, 0 * GREYS, 255 * GREYS], axis=-1)),
    "white with soft edges": Image.fromarray(40 + 180 * GREYS + np.arange(30, dtype=np.uint8)),
    "16 bits": Image.fromarray((65535 * INSIDE).astype(np.uint16)),
    "0 and 1 in 16 bits": Image.fromarray(INSIDE.astype(np.uint16)),
    "class numbers up to 150": Image.fromarray(GREYS * np.where(np.arange(30) < 12, 20, 150).astype(np.uint8)),
    "white with one grey edge": Image.fromarray(np.where(BORDER, 100, 255 * INSIDE).astype(np.uint8)),
    "cut out": transparent(),
}


@pytest.mark.parametrize("image", DRAWN.values(), ids=DRAWN)
def test_the_object_is_found_however_it_is_drawn(image, tmp_path):
    """Ground truth: the pixels that were drawn."""
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask_file(tmp_path / "mask.png"), INSIDE)


@pytest.mark.parametrize("in_palette", [False, True])
def test_a_void_border_is_outside_and_said_so(in_palette, tmp_path):
    values = np.where(BORDER, 255, 15 * INSIDE).astype(np.uint8)
    image = Image.fromarray(values)
    if in_palette:
        image.putpalette([*(0, 0, 0), *(128, 0, 0) * 254, *(224, 224, 192)])
    image.save(tmp_path / "mask.png")
    with pytest.warns(VoidBorderWarning, match="border of 255"):
        assert np.array_equal(read_mask_file(tmp_path / "mask.png"), INSIDE)


def test_a_photograph_of_a_drawing_is_read_by_brightness(tmp_path):
    image = Image.new("L", (60, 60), 12)
    ImageDraw.Draw(image).ellipse((15, 15, 45, 45), fill=240)
    image.save(tmp_path / "mask.jpg", quality=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_mask_file(tmp_path / "mask.jpg"), np.asarray(image) > 127)


def test_no_picture_is_refused(tmp_path):
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read"):
        read_mask_file(tmp_path / "mask.png")
