"""A photograph of any kind arrives as the right RGB values: expected values by hand."""

import io
import operator
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from small import refusal

from denoscope.vision.photographs import AnimatedPhotographWarning, load_photograph

ORANGE, HALF = (200, 100, 50), (228, 178, 153)
"""A colour, and the same at alpha 127/255 on white: 255 − (255 − c) 127 / 255."""


CONVERTED = {"YCbCr", "LAB", "RGBa", "La"}
"""Pillow's own conversion of these may be one off."""


def palette(transparency=None) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def keyed(image: Image.Image, transparent) -> Image.Image:
    image.info["transparency"] = transparent
    return image


def sixteen(mode: str, value: int) -> Image.Image:
    order = ">u2" if mode.endswith("B") else "<u2"
    return Image.frombytes(mode, (1, 1), np.array([value], order).tobytes())


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("1", (1, 1), 1), [(255,) * 3]),
        (Image.new("L", (1, 1), 77), [(77,) * 3]),
        (Image.new("RGB", (1, 1), ORANGE), [ORANGE]),
        (Image.new("RGBX", (1, 1), (*ORANGE, 0)), [ORANGE]),
        (Image.new("YCbCr", (1, 1), (76, 85, 255)), [(254, 0, 0)]),
        (Image.new("HSV", (1, 1), (0, 255, 200)), [(200, 0, 0)]),
        (Image.new("LAB", (1, 1), (255, 128, 128)), [(255, 255, 255)]),
        (Image.new("CMYK", (1, 1), (55, 155, 205, 0)), [ORANGE]),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 255)), [(0, 0, 0)]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 255)), [ORANGE]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 127)), [HALF]),
        (Image.new("RGBA", (1, 1), (*ORANGE, 0)), [(255,) * 3]),
        (Image.new("RGBa", (1, 1), (100, 50, 25, 127)), [HALF]),
        (Image.new("LA", (1, 1), (77, 0)), [(255,) * 3]),
        (Image.new("LA", (1, 1), (100, 127)), [(178,) * 3]),
        (Image.new("La", (1, 1), (50, 127)), [(178,) * 3]),
        (palette(), [ORANGE, (10, 20, 30)]),
        (palette(0), [(255,) * 3, (10, 20, 30)]),
        (palette(bytes([127, 255])), [HALF, (10, 20, 30)]),
        (palette().convert("PA"), [ORANGE, (10, 20, 30)]),
        (keyed(Image.new("L", (1, 1), 5), 5), [(255,) * 3]),
        (keyed(Image.new("RGB", (1, 1), ORANGE), ORANGE), [(255,) * 3]),
        (keyed(sixteen("I;16", 300), 300), [(255,) * 3]),
        (sixteen("I;16", 65535), [(255,) * 3]),
        (sixteen("I;16", 0), [(0,) * 3]),
        (sixteen("I;16", 128 * 257), [(128,) * 3]),
        (sixteen("I;16", 128 * 257 + 129), [(129,) * 3]),
        (sixteen("I;16L", 100 * 257), [(100,) * 3]),
        (sixteen("I;16B", 100 * 257), [(100,) * 3]),
        (Image.new("I", (1, 1), 65535), [(255,) * 3]),
        (Image.new("I", (1, 1), 100 * 257), [(100,) * 3]),
        (Image.new("F", (1, 1), 0.4), [(102,) * 3]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_arrives_as_rgb(image, expected):
    before = image.tobytes()
    photograph = load_photograph(image)
    assert (photograph.mode, photograph.size) == ("RGB", image.size)
    pixels = np.asarray(photograph).reshape(-1, 3).astype(int)
    assert np.abs(pixels - np.array(expected)).max() <= (image.mode in CONVERTED)
    assert image.tobytes() == before and photograph is not image


def test_modes_are_all_of_pillows():
    """Whatever mode Pillow adds, a white-ish or black picture of it is read."""
    for mode in [*Image.MODES, "I;16", "I;16L", "I;16B", "I;16N", "La", "RGBX", "RGBa", "PA"]:
        assert load_photograph(Image.new(mode, (2, 3))).size == (2, 3)


@pytest.mark.parametrize(
    "kind, options, image",
    [
        ("PNG", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("PNG", {}, Image.new("RGB", (1, 1), ORANGE)),
        ("TIFF", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("WEBP", dict(lossless=True), Image.new("RGB", (3, 2), ORANGE)),
        ("BMP", {}, Image.new("RGB", (3, 2), ORANGE)),
        ("GIF", {}, palette()),
        ("PNG", dict(transparency=1), palette()),
        ("TIFF", {}, Image.new("CMYK", (3, 2), (55, 155, 205, 0))),
        ("PNG", {}, Image.fromarray(np.full((2, 3), 65535, np.uint16))),
        ("TIFF", {}, Image.fromarray(np.full((2, 3), 65535, np.uint16))),
    ],
    ids=operator.attrgetter("__class__.__name__"),
)
def test_files_arrive_as_rgb(tmp_path, kind, options, image):
    path = tmp_path / f"a photo ü.{kind.lower()}"
    image.save(path, kind, **options)
    for source in (path, str(path)):
        photograph = load_photograph(source)
        assert (photograph.mode, photograph.size) == ("RGB", image.size)
        sixteen_bits = image.mode.startswith("I")
        assert photograph.getpixel((0, 0)) == ((255, 255, 255) if sixteen_bits else ORANGE)
    if options.get("transparency"):
        assert photograph.getpixel((1, 0)) == (255, 255, 255)


def quarters() -> Image.Image:
    """64 × 32: red, green over blue, white."""
    colours = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
    return Image.fromarray(colours.repeat(16, 0).repeat(32, 1))


def corners(image: Image.Image) -> list[tuple[bool, ...]]:
    w, h = image.size
    return [tuple(c > 127 for c in image.getpixel(at)) for at in [(2, 2), (w - 3, 2), (2, h - 3), (w - 3, h - 3)]]


RED, GREEN, BLUE, WHITE = (True, False, False), (False, True, False), (False, False, True), (True, True, True)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    "orientation, size, expected",
    [
        (1, (64, 32), [RED, GREEN, BLUE, WHITE]),
        (3, (64, 32), [WHITE, BLUE, GREEN, RED]),
        (6, (32, 64), [BLUE, RED, WHITE, GREEN]),
        (8, (32, 64), [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, kind, orientation, size, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "turned", kind, exif=exif, **(dict(quality=95) if kind == "JPEG" else {}))
    photograph = load_photograph(tmp_path / "turned")
    assert photograph.size == size and corners(photograph) == expected
    assert corners(load_photograph(photograph)) == expected  # and not applied again


def film(kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    shots = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    shots[0].save(file, kind, save_all=True, append_images=shots[1:], **options)
    return file


@pytest.mark.parametrize("kind, options", [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", dict(lossless=True))])
def test_of_several_pictures_the_first_is_used(tmp_path, kind, options):
    path = tmp_path / "film"
    path.write_bytes(film(kind, **options).getvalue())
    with pytest.warns(AnimatedPhotographWarning, match="only the first") as warned:
        photograph = load_photograph(path)
    assert photograph.getpixel((1, 1)) == (255, 0, 0) and warned[0].filename == __file__


def test_an_open_film_is_used_where_it_stands_and_stays_open(tmp_path):
    (tmp_path / "film.gif").write_bytes(film("GIF").getvalue())
    with Image.open(tmp_path / "film.gif") as image:
        image.seek(2)
        with pytest.warns(AnimatedPhotographWarning, match="number 2"):
            assert load_photograph(image).getpixel((1, 1)) == (0, 0, 255)
        assert image.tell() == 2
        image.seek(1)
        assert image.convert("RGB").getpixel((1, 1)) == (0, 255, 0)


def test_a_stereo_jpeg_is_one_photograph(tmp_path):
    path = tmp_path / "stereo.mpo"
    path.write_bytes(film("MPO").getvalue())
    red, _, _ = load_photograph(path).getpixel((1, 1))
    assert red > 250


@pytest.mark.parametrize("side, decoded", [(6000, 1500), (2047, 2047), (2048, 1024)])
def test_a_large_jpeg_is_decoded_reduced(tmp_path, side, decoded):
    Image.new("RGB", (side, side), ORANGE).save(tmp_path / "large.jpg", quality=95)
    photograph = load_photograph(tmp_path / "large.jpg")
    assert photograph.size == (decoded, decoded)
    assert np.abs(np.subtract(photograph.getpixel((decoded // 2, 7)), ORANGE)).max() <= 2


def test_the_limit_is_pillows(tmp_path, monkeypatch):
    """A JPEG that fits when decoded reduced is read without a warning; the rest is refused and says the numbers."""
    png, jpeg = tmp_path / "large.png", tmp_path / "large.jpg"
    Image.new("1", (2048, 2100)).save(png)
    Image.new("L", (2048, 2100), 90).save(jpeg)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2048 * 1500)
    message = refusal(load_photograph, png)
    assert "2048 × 2100 is 4300800 pixels" in message and "at most 3072000" in message and "Shrink it" in message
    assert load_photograph(jpeg).size == (1024, 1050)
    assert "2048 × 2100" in refusal(load_photograph, Image.new("L", (2048, 2100)))
    assert "2048 × 2100" in refusal(load_photograph, np.zeros((2100, 2048), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "4300800 pixels" in refusal(load_photograph, jpeg)  # Pillow's own error, at twice its limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_photograph(png).size == (2048, 2100)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((2, 3), 77, np.uint8), (77,) * 3),
        (np.full((2, 3, 1), 77, np.uint8), (77,) * 3),
        (np.full((2, 3, 3), ORANGE, np.uint8), ORANGE),
        (np.full((2, 3, 4), (*ORANGE, 127), np.uint8), HALF),
        (np.full((2, 3), 65535, np.uint16), (255,) * 3),
        (np.full((2, 3, 3), np.multiply(ORANGE, 257), np.uint16), ORANGE),
        (np.full((2, 3), 100 * 257, ">u2"), (100,) * 3),
        (np.full((2, 3), True), (255,) * 3),
        (np.full((2, 3, 3), (True, False, True)), (255, 0, 255)),
        (np.full((2, 3, 3), np.divide(ORANGE, 255)), ORANGE),
        (np.full((2, 3, 3), np.divide(ORANGE, 255), np.float16), ORANGE),
        (np.full((2, 3), 1.0, np.float32), (255,) * 3),
        (np.full((4, 3, 3), ORANGE, np.uint8)[::2], ORANGE),
        (np.full((1, 1), 0.0), (0,) * 3),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_arrays_arrive_as_rgb(array, expected):
    before = array.copy()
    photograph = load_photograph(array)
    assert photograph.mode == "RGB" and photograph.size == array.shape[1::-1]
    assert np.abs(np.subtract(np.asarray(photograph).astype(int), expected)).max() <= (1 if expected == HALF else 0)
    assert np.array_equal(array, before)
    array[...] = 0
    assert np.abs(np.subtract(photograph.getpixel((0, 0)), expected)).max() <= 1  # a picture of its own


def test_sixteen_bits_and_floats_are_rounded():
    """Oracle: exact arithmetic, for all 16-bit values."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    exact = (2 * values.astype(np.int64) + 257) // 514  # round(v / 257), no ties as 257 is odd
    assert np.array_equal(np.asarray(load_photograph(values))[..., 1], exact)
    assert np.array_equal(np.asarray(load_photograph(values / 65535))[..., 1], exact)


NAN = np.array([[0.5, np.nan]])


@pytest.mark.parametrize(
    "source, said",
    [
        (np.zeros((0, 5), np.uint8), "at least one pixel"),
        (np.zeros((5,), np.uint8), "must be (h, w)"),
        (np.zeros((3, 5, 6), np.uint8), "channels last"),
        (np.zeros((1, 5, 6, 3), np.uint8), "(1, 5, 6, 3)"),
        (np.zeros((5, 6), np.int64), "array.astype(np.uint8)"),
        (np.zeros((5, 6), np.uint32), "uint32"),
        (np.zeros((5, 6), complex), "complex128"),
        (np.zeros((5, 6), object), "object"),
        (NAN, "nan to nan"),
        (NAN * np.inf, "without NaN"),
        (np.full((2, 2), np.inf), "inf"),
        (np.full((2, 2), 1.5), "from 1.5 to 1.5"),
        (np.full((2, 2), -0.1), "from -0.1"),
        (np.full((2, 2), 255.0), "divide those up to 255 by 255"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.new("I", (2, 2), 70000), "70000"),
        (Image.new("I", (2, 2), -1), "from -1"),
        (Image.new("F", (2, 2), 200.0), "200"),
        (torch.zeros(3, 4, 4), "(Tensor) is not a photograph"),
        (None, "None (NoneType)"),
        (7, "7 (int)"),
        (b"photo.jpg", "(bytes)"),
        ("", "the folder you are in"),
        ("photo\0.jpg", "The file"),
        ("~nobody-of-that-name/photo.jpg", "The file"),
        ("no\nsuch\nphoto.jpg", 'The file "no such photo.jpg" does not exist'),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_photograph(source, said):
    assert said in refusal(load_photograph, source)


def saved(kind: str, size=(64, 64), **options) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "cannot identify"),
        (b"not a picture at all", "cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "HEIC, SVG"),
        (saved("JPEG")[:-300], "truncated"),
        (saved("PNG")[:-300], "truncated"),
        (saved("TIFF")[:-3000], "cannot be read"),
        (saved("GIF")[:300], "cannot be read"),
        (saved("WEBP")[:300], "cannot be read"),
        (saved("PNG")[:30], "cannot be read"),
        (saved("JPEG")[:30], "cannot be read"),
    ],
    ids="empty text svg JPEG PNG TIFF GIF WEBP PNG-head JPEG-head".split(),
)
def test_a_broken_file_is_refused(tmp_path, content, said):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of some before it fails
        message = refusal(load_photograph, path)
    assert said in message and "photo.jpg" in message


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "tiger.jpg").write_bytes(saved("JPEG"))
    assert 'Did you mean "tiger.jpg"' in refusal(load_photograph, tmp_path / "tigre.jpg")
    assert "does not exist" in refusal(load_photograph, tmp_path / "nowhere" / "tiger.jpg")
    assert "not a file but a folder" in refusal(load_photograph, tmp_path)


def test_a_closed_picture_is_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with Image.open(tmp_path / "photo.png") as image:
        pass
    assert "cannot be read" in refusal(load_photograph, image)


def test_an_open_picture_stays_open(tmp_path):
    (tmp_path / "photo.png").write_bytes(saved("PNG"))
    with Image.open(tmp_path / "photo.png") as image:
        first, second = load_photograph(image), load_photograph(image)
        assert first.tobytes() == second.tobytes() and image.mode == "L"
        image.getpixel((0, 0))


def test_pillow_is_left_as_it_was(tmp_path):
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    (tmp_path / "photo.jpg").write_bytes(saved("JPEG"))
    load_photograph(tmp_path / "photo.jpg")
    refusal(load_photograph, tmp_path / "no.jpg")
    assert limit == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters
