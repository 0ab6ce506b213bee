"""A picture with an ICC profile arrives in sRGB; the oracle is colour arithmetic, the profiles are written here."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from denoscope.vision.photographs import ColourProfileWarning, DarkPhotographWarning, load_photograph

D50 = (0.9642, 1.0, 0.8249)
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
"""XYZ of sRGB's red, green and blue, adapted to D50."""
ADOBE = np.array([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)])
"""XYZ of Adobe RGB's red, green and blue, adapted to D50 (Adobe RGB (1998), version 2005-05)."""


def fixed(values) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """An ICC profile, version 2.4 (ICC.1:2001-04)."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(D50), **tags}
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    xyz = {name: b"XYZ \0\0\0\0" + fixed(of) for name, of in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return profile({**xyz, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))}, b"RGB ")


def grey_profile(gamma: float) -> bytes:
    return profile({b"kTRC": curve(gamma)}, b"GRAY")


def encoded(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, to 8 bits."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def slow_srgb(colour, primaries: np.ndarray, gamma: float) -> np.ndarray:
    xyz = (np.array(colour) / 255) ** gamma @ primaries
    return encoded(xyz @ np.linalg.inv(SRGB))


def with_profile(image: Image.Image, content: bytes) -> Image.Image:
    image.info["icc_profile"] = content
    return image


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("primaries, gamma", [(ADOBE, 563 / 256), (SRGB[[1, 0, 2]], 2.2), (SRGB, 1.0)])
@pytest.mark.parametrize("colour", [(60, 160, 60), (255, 0, 0), (10, 10, 200), (128, 128, 128)])
def test_colours_are_those_of_the_profile(tmp_path, kind, primaries, gamma, colour):
    path = tmp_path / "photo"
    options = dict(lossless=True) if kind == "WEBP" else dict(quality=100, subsampling=0) if kind == "JPEG" else {}
    Image.new("RGB", (8, 8), colour).save(path, kind, icc_profile=rgb_profile(primaries, gamma), **options)
    with Image.open(path) as image:
        pixel = image.convert("RGB").getpixel((4, 4))  # JPEG is a level or two off by itself
    photograph = load_photograph(path)
    assert np.abs(photograph.getpixel((4, 4)) - slow_srgb(pixel, primaries, gamma)).max() <= 1.5


def test_the_published_pair():
    """Adobe RGB (60, 160, 60) is sRGB (0, 161, 48)."""
    image = with_profile(Image.new("RGB", (1, 1), (60, 160, 60)), rgb_profile(ADOBE, 563 / 256))
    assert np.abs(np.subtract(load_photograph(image).getpixel((0, 0)), (0, 161, 48))).max() <= 1
    assert image.getpixel((0, 0)) == (60, 160, 60)


def test_exchanged_primaries():
    image = with_profile(Image.new("RGB", (1, 1), (255, 0, 0)), rgb_profile(SRGB[[1, 0, 2]], 2.2))
    photograph = load_photograph(image)
    assert np.abs(np.subtract(photograph.getpixel((0, 0)), (0, 255, 0))).max() <= 1
    assert load_photograph(photograph).tobytes() == photograph.tobytes()  # a profile is applied once


def test_srgb_itself_changes_no_pixel():
    """Rounding in Little CMS moves no picture whose profile says that it is sRGB already."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(load_photograph(with_profile(Image.fromarray(pixels), content)), pixels)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (1, 1), 128),
        Image.fromarray(np.full((1, 1), 128 * 257, np.uint16)),
        Image.new("I", (1, 1), 128 * 257),
        Image.new("LA", (1, 1), (128, 255)),
    ],
    ids=lambda image: image.mode,
)
def test_grey_pictures_have_grey_profiles(image):
    expected = encoded(np.full(3, 128 / 255))
    photograph = load_photograph(with_profile(image, grey_profile(1.0)))
    assert np.abs(photograph.getpixel((0, 0)) - expected).max() <= 1


def test_transparency_stays():
    """The colour is converted, then laid on white."""
    content = rgb_profile(SRGB[[1, 0, 2]], 2.2)
    clear, half = (Image.new("RGBA", (1, 1), (255, 0, 0, alpha)) for alpha in (0, 51))
    assert load_photograph(with_profile(clear, content)).getpixel((0, 0)) == (255, 255, 255)
    assert load_photograph(with_profile(half, content)).getpixel((0, 0)) == (204, 255, 204)


@pytest.mark.parametrize(
    "image, content, reason",
    [
        (Image.new("RGB", (1, 1), (200, 100, 50)), b"not a profile", "profile"),
        (Image.new("RGB", (1, 1), (200, 100, 50)), rgb_profile(ADOBE, 2.2)[:200], "profile"),
        (Image.new("RGB", (1, 1), (200, 100, 50)), grey_profile(2.2), "GRAY colours, and the picture has mode RGB"),
        (Image.new("CMYK", (1, 1), (55, 155, 205, 0)), rgb_profile(ADOBE, 2.2), "RGB colours"),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(image, content, reason):
    with pytest.warns(ColourProfileWarning, match="read as sRGB") as warned:
        photograph = load_photograph(with_profile(image, content))
    assert photograph.getpixel((0, 0)) == (200, 100, 50)
    assert reason in str(warned[0].message) and warned[0].filename == __file__


@pytest.mark.parametrize(
    "source",
    [
        Image.new("L", (4, 4), 200).convert("I"),
        Image.fromarray(np.full((4, 4), 255, np.uint16)),
        np.full((4, 4), 1, np.uint16),
        np.full((4, 4, 3), 255, np.uint16),
    ],
)
def test_deep_pictures_of_eight_bits_are_named(source):
    with pytest.warns(DarkPhotographWarning, match="no value above 255") as warned:
        photograph = load_photograph(source)
    assert max(photograph.getpixel((0, 0))) <= 1 and warned[0].filename == __file__


@pytest.mark.parametrize(
    "source", [np.full((2, 2), 256, np.uint16), np.zeros((2, 2), np.uint16), np.full((2, 2), 1, np.uint8)]
)
def test_other_dark_pictures_are_not(source):
    assert max(load_photograph(source).getpixel((0, 0))) <= 1
